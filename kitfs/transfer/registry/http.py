"""HTTP by libcurl: one request at a time a thread, every size and time limited, no redirect followed by itself.

Used by ``client`` and ``auth``, which decide about redirects, credentials and retries. A connection is kept and used
again by the thread that made it. Only http and https are spoken, whatever a server says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pycurl

from kitfs import __version__
from kitfs.transfer.registry.errors import RegistryMisbehaves, RegistryUnreachable

CONNECT_TIMEOUT_S = 30
SILENCE_S = 60
"""A transfer that brings less than a byte a second for so long has ended."""

ANSWER_SIZE_MAX = 4 << 20
"""Largest body that is kept in memory; a manifest has at most as much."""

HEADERS_SIZE_MAX = 256 << 10
_BUFFER_SIZE = 512 << 10
_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class Sink(Protocol):
    """Takes the body of a success."""

    def begin(self, response: Response) -> None:
        """Its headers are here, its first bytes follow."""

    def take(self, data: bytes) -> None:
        """The next bytes."""


@dataclass(frozen=True)
class HttpOptions:
    """How to connect, as kit's flags say.

    Attributes:
        plain_http: Speak http, not https.
        tls_verify: Check certificates.
        ca: A file of certificates to trust besides the system's; empty for none.
        cert: A client certificate.
        key: Its key.
        proxy: A proxy; empty for that of the environment.
    """

    plain_http: bool = False
    tls_verify: bool = True
    ca: str = ""
    cert: str = ""
    key: str = ""
    proxy: str = ""

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.plain_http else "https"


@dataclass
class Response:
    """An answer.

    Attributes:
        url: Of the request.
        status: HTTP status.
        headers: By lower-case name; the last of a name.
        challenges: All ``WWW-Authenticate`` headers.
        body: The body, where it was not given to a sink.
        size: Bytes of the body.
    """

    url: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    challenges: list[str] = field(default_factory=list)
    body: bytes = b""
    size: int = 0

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


class _Exchange:
    """One request under way: what curl calls."""

    def __init__(self, url: str, sink: Sink | None) -> None:
        self.response = Response(url)
        self.failure: BaseException | None = None
        self._sink = sink
        self._kept: list[bytes] = []
        self._header_size = 0

    def take_header(self, line: bytes) -> int | None:
        self._header_size += len(line)
        if self._header_size > HEADERS_SIZE_MAX:
            self.failure = RegistryMisbehaves(self.response.url, f"more than {HEADERS_SIZE_MAX} bytes of headers")
            return -1
        text = line.decode("iso-8859-1").rstrip("\r\n")
        if text.startswith("HTTP/"):  # also after an interim answer
            words = text.split(" ", 2)
            self.response.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
            self.response.headers.clear()
            self.response.challenges.clear()
        name, colon, value = text.partition(":")
        if colon:
            name = name.strip().lower()
            self.response.headers[name] = value.strip()
            if name == "www-authenticate":
                self.response.challenges.append(value.strip())
        return None

    def take_body(self, data: bytes) -> int | None:
        is_first = not self.response.size
        self.response.size += len(data)
        try:
            if self._sink is not None and self.response.is_success:
                if is_first:
                    self._sink.begin(self.response)
                self._sink.take(data)
                return None
        except BaseException as error:  # noqa: BLE001  # may not pass through curl
            self.failure = error
            return -1
        if self.response.size > ANSWER_SIZE_MAX:
            self.failure = RegistryMisbehaves(self.response.url, f"an answer of more than {ANSWER_SIZE_MAX} bytes")
            return -1
        self._kept.append(data)
        return None

    def finish(self) -> Response:
        self.response.body = b"".join(self._kept)
        return self.response


class Transport:
    """Sends requests. Any thread; each has connections of its own."""

    def __init__(self, options: HttpOptions) -> None:
        self.options = options
        self._local = threading.local()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        source: Callable[[int], bytes] | None = None,
        size: int = 0,
        sink: Sink | None = None,
    ) -> Response:
        """One request and its whole answer.

        Args:
            method: GET, HEAD, POST, PUT, PATCH or DELETE.
            url: Where.
            headers: Besides those that every request has.
            body: What is sent, when it is in memory.
            source: Else, gives up to so many bytes more of it.
            size: Bytes that ``source`` gives.
            sink: Takes the body of a success; without it, it is kept.

        Raises:
            RegistryUnreachable: when there is no answer, or not a whole one.
            RegistryMisbehaves: when the answer goes beyond a limit.
            BaseException: what ``source`` or ``sink`` raised.
        """
        exchange = _Exchange(url, sink)
        curl = self._curl()
        self._prepare(curl, method, url, headers or {}, exchange)
        if body is not None:
            source, size = _reader(body), len(body)
        if source is not None:
            self._upload(curl, method, source, size, exchange)
        try:
            curl.perform()
        except pycurl.error as error:
            if exchange.failure is not None:
                raise exchange.failure from None
            raise RegistryUnreachable(url, curl.errstr() or str(error)) from None
        return exchange.finish()

    def _curl(self) -> pycurl.Curl:
        curl: pycurl.Curl | None = getattr(self._local, "curl", None)
        if curl is None:
            curl = self._local.curl = pycurl.Curl()
        curl.reset()
        return curl

    def _prepare(
        self, curl: pycurl.Curl, method: str, url: str, headers: Mapping[str, str], exchange: _Exchange
    ) -> None:
        options = self.options
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)  # pycurl 7.49 has no PROTOCOLS_STR
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.FOLLOWLOCATION, 0)
        curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_TIMEOUT_S)
        curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        curl.setopt(pycurl.LOW_SPEED_TIME, SILENCE_S)
        curl.setopt(pycurl.BUFFERSIZE, _BUFFER_SIZE)
        curl.setopt(pycurl.USERAGENT, f"kitfs/{__version__}")
        curl.setopt(pycurl.HTTPHEADER, ["Expect:", *(f"{name}: {value}" for name, value in headers.items())])
        curl.setopt(pycurl.HEADERFUNCTION, exchange.take_header)
        curl.setopt(pycurl.WRITEFUNCTION, exchange.take_body)
        curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
        if method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif method != "GET":
            curl.setopt(pycurl.CUSTOMREQUEST, method)
        curl.setopt(pycurl.SSL_VERIFYPEER, int(options.tls_verify))
        curl.setopt(pycurl.SSL_VERIFYHOST, 2 if options.tls_verify else 0)
        if bundle := options.ca or next((path for path in _CA_BUNDLES if Path(path).exists()), ""):
            curl.setopt(pycurl.CAINFO, bundle)
        for option, value in ((pycurl.SSLCERT, options.cert), (pycurl.SSLKEY, options.key),
                              (pycurl.PROXY, options.proxy)):  # fmt: skip
            if value:
                curl.setopt(option, value)

    @staticmethod
    def _upload(curl: pycurl.Curl, method: str, source: Callable[[int], bytes], size: int, exchange: _Exchange) -> None:
        def read(count: int) -> bytes | int:
            try:
                return source(count)
            except BaseException as error:  # noqa: BLE001  # may not pass through curl
                exchange.failure = error
                return pycurl.READFUNC_ABORT

        if method == "POST" and not size:
            curl.setopt(pycurl.POST, 1)
            curl.setopt(pycurl.POSTFIELDSIZE, 0)
            return
        curl.setopt(pycurl.UPLOAD, 1)
        curl.setopt(pycurl.CUSTOMREQUEST, method)
        curl.setopt(pycurl.INFILESIZE_LARGE, size)
        curl.setopt(pycurl.READFUNCTION, read)


def _reader(body: bytes) -> Callable[[int], bytes]:
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        piece = body[position : position + count]
        position += len(piece)
        return piece

    return read
