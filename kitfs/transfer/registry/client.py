"""One registry: manifests, blobs and uploads of the OCI distribution specification 1.1.

Used by ``remote_source`` (pull), ``push`` and ``kitfs login``. What is kept in memory is verified by its digest here,
what is streamed by whoever takes it. Methods may be called from any thread.

Redirects are followed here, one by one, for what is read only: never from https to http, and to another host without
any credential. Reads and requests that can be repeated are tried again after a failure that may pass.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from kitfs.digest import Digest, DigestMalformed, DigestMismatch
from kitfs.oci.manifest import Descriptor
from kitfs.oci.mediatype import OCI_INDEX, OCI_MANIFEST
from kitfs.oci.strict_json import JsonMalformed, decode
from kitfs.transfer.registry.auth import Authority
from kitfs.transfer.registry.credentials import Credential, find_credential
from kitfs.transfer.registry.errors import (
    AccessDenied,
    NotInRegistry,
    RegistryMisbehaves,
    RegistryRefused,
    RegistryUnreachable,
)
from kitfs.transfer.registry.http import ANSWER_SIZE_MAX, HttpOptions, Response, Transport

REDIRECTS_MAX = 5
TRIES = 5
_WAIT_MAX_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-")
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which the same request is sent again."""

_ACCEPT = ", ".join([OCI_MANIFEST, OCI_INDEX, "*/*;q=0.1"])


class Registry:
    """The registry of one host, seen for one repository's work at a time."""

    def __init__(self, host: str, options: HttpOptions, kitops_home: Path) -> None:
        """Prepare; nothing is sent.

        Args:
            host: With its port.
            options: How to connect.
            kitops_home: kit's home, where credentials may be.
        """
        self.host = host
        server = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
        self._base = f"{options.scheme}://{server}"
        self._transport = Transport(options)
        self._authority = Authority(self._transport, self._base, lambda: find_credential(host, kitops_home))

    def with_credential(self, credential: Credential) -> Registry:
        """The same registry, for somebody else."""
        self._authority = Authority(self._transport, self._base, lambda: credential)
        return self

    def check(self) -> None:
        """See that it speaks our protocol and takes our credentials.

        Raises:
            AccessDenied: when it does not take them.
            NetworkError: when it does not answer, or is no registry.
        """
        response = self._send("GET", "/v2/", "")
        if not response.is_success:
            raise RegistryRefused(response.url, response.status, "it is no registry")

    def resolve(self, path: str, name: str) -> tuple[Descriptor, bytes]:
        """A manifest by tag or digest, verified where a digest says what it must be.

        Raises:
            NotInRegistry: when there is none.
            DigestMismatch: when the registry gives other bytes than it says.
        """
        response = self._send("GET", f"/v2/{path}/manifests/{name}", _pull(path), headers={"Accept": _ACCEPT})
        self._check(response, f"{self.host}/{path}:{name}")
        actual = Digest.of(response.body)
        claimed = name if name.startswith("sha256:") else response.headers.get("docker-content-digest", "")
        expected = _find_digest(claimed)
        if expected is not None and actual != expected:
            raise DigestMismatch(expected, actual, f"manifest {path}:{name}")
        kind = response.headers.get("content-type", OCI_MANIFEST).partition(";")[0].strip()
        return Descriptor(kind, actual, len(response.body), {}), response.body

    def fetch_blob(
        self, path: str, digest: Digest, take: Callable[[bytes], object], *, start: int = 0, stop: int | None = None
    ) -> int:
        """Bytes ``start`` to ``stop`` of a blob, given to ``take`` piece by piece, not verified; how many there were.

        A registry that ignores the range begins at 0: what lies before ``start`` is dropped then.

        Raises:
            NotInRegistry: when there is no such blob.
            RegistryUnreachable: when it breaks off; what came until then was taken.
        """
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        taken = _Range(take, start, stop)
        response = self._get(f"/v2/{path}/blobs/{digest}", _pull(path), headers, taken)
        if response.status == 416:
            return 0
        self._check(response, f"blob {digest} of {self.host}/{path}")
        return taken.size

    def has_blob(self, path: str, digest: Digest) -> bool:
        """Whether a repository has a blob."""
        response = self._send("HEAD", f"/v2/{path}/blobs/{digest}", _push(path))
        if response.status == 404:
            return False
        self._check(response, f"blob {digest}")
        return True

    def mount_blob(self, path: str, digest: Digest, other: str) -> str | None:
        """Take a blob over from another repository of the registry; else the address of an upload that was begun."""
        query = f"?mount={quote(str(digest))}&from={quote(other, safe='')}"
        response = self._send("POST", f"/v2/{path}/blobs/uploads/{query}", f"{_push(path)} repository:{other}:pull",
                              body=b"")  # fmt: skip
        self._check(response, f"a mount of blob {digest}")
        return None if response.status == 201 else self._location(response)

    def begin_upload(self, path: str) -> str:
        """Begin an upload; its address."""
        response = self._send("POST", f"/v2/{path}/blobs/uploads/", _push(path), body=b"")
        self._check(response, f"an upload to {self.host}/{path}")
        return self._location(response)

    def upload_blob(self, path: str, location: str, digest: Digest, read: Callable[[int], bytes], size: int) -> None:
        """Send a whole blob to the address of an upload and end it.

        Raises:
            RegistryRefused: when it is not taken.
        """
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(str(digest))}"
        headers = {"Content-Type": "application/octet-stream"}
        authorization = self._authority.header(_push(path)) if self._is_ours(url) else None
        if authorization is not None:
            headers["Authorization"] = authorization
        response = self._transport.send("PUT", url, headers=headers, source=read, size=size)
        if response.status == 401:
            raise AccessDenied(self.host, "an upload", "its token has ended")
        self._check(response, f"blob {digest}")

    def put_manifest(self, path: str, name: str, raw: bytes, media_type: str) -> None:
        """Set a manifest under a tag or its digest.

        Raises:
            RegistryRefused: when it is not taken.
        """
        response = self._send("PUT", f"/v2/{path}/manifests/{name}", _push(path), body=raw,
                              headers={"Content-Type": media_type})  # fmt: skip
        self._check(response, f"manifest {path}:{name}")

    def _location(self, response: Response) -> str:
        location = urljoin(response.url, response.headers.get("location", ""))
        if urlsplit(location).scheme not in ("http", "https") or location == response.url:
            raise RegistryMisbehaves(response.url, "an upload without an address")
        self._check_step(response.url, location)
        return location

    def _is_ours(self, url: str) -> bool:
        ours, theirs = urlsplit(self._base), urlsplit(url)
        return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)

    @staticmethod
    def _check_step(url: str, following: str) -> None:
        if urlsplit(url).scheme == "https" and urlsplit(following).scheme != "https":
            raise RegistryMisbehaves(url, "it leads from https to http")

    def _get(self, target: str, scope: str, headers: dict[str, str], sink: _Range) -> Response:
        """A read that may be led elsewhere."""
        response = self._send("GET", target, scope, headers=headers, sink=sink)
        for _ in range(REDIRECTS_MAX):
            if response.status not in (301, 302, 303, 307, 308):
                return response
            following = urljoin(response.url, response.headers.get("location", ""))
            self._check_step(response.url, following)
            if urlsplit(following).scheme not in ("http", "https"):
                raise RegistryMisbehaves(response.url, "it leads to what is no http address")
            more = self._authority.header(scope) if self._is_ours(following) else None
            sent = {**headers, "Authorization": more} if more else headers
            response = self._transport.send("GET", following, headers=sent, sink=sink)
        raise RegistryMisbehaves(response.url, f"more than {REDIRECTS_MAX} redirects")

    def _send(self, method: str, target: str, scope: str, *, headers: dict[str, str] | None = None,
              body: bytes | None = None, sink: _Range | None = None) -> Response:  # fmt: skip
        """A request to the registry itself, with what it wants to know us by; tried again where that may help."""
        url = f"{self._base}{target}"
        authorization = self._authority.header(scope)
        wait_s = 0.5
        for attempt in range(1, TRIES + 1):
            sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
            try:
                response = self._transport.send(method, url, headers=sent, body=body, sink=sink)
            except RegistryUnreachable:
                if attempt == TRIES or (sink is not None and sink.size) or method == "POST":
                    raise
                asked_s = 0.0
            else:
                if response.status == 401 and attempt <= 2:
                    authorization = self._authority.answer(response, scope, authorization)
                    continue
                if response.status not in _PASSING or attempt == TRIES:
                    return response
                asked_s = _seconds(response.headers.get("retry-after", ""))
            time.sleep(min(max(asked_s, wait_s * random.uniform(0.5, 1.0)), _WAIT_MAX_S))
            wait_s *= 2
        return response

    def _check(self, response: Response, what: str) -> None:
        if response.is_success:
            return
        said = _explain(response.body)
        if response.status == 404:
            raise NotInRegistry(what)
        if response.status in (401, 403):
            raise AccessDenied(self.host, what, said)
        raise RegistryRefused(response.url, response.status, said)


class _Range:
    """Passes on the range that was asked for, also of an answer that begins at 0 or does not end there."""

    def __init__(self, take: Callable[[bytes], object], start: int, stop: int | None) -> None:
        self._take = take
        self._start = start
        self._skip = 0
        self._left = None if stop is None else stop - start
        self.size = 0

    def begin(self, response: Response) -> None:
        """An answer begins: with 206 where it was asked to, else at 0."""
        at = 0
        if response.status == 206:
            found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
            if found is None or int(found[1]) > self._start:
                raise RegistryMisbehaves(response.url, "it sends another range than was asked for")
            at = int(found[1])
        self._skip = self._start - at

    def take(self, data: bytes) -> None:
        """The next bytes."""
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        if self._left is not None:
            data = data[: self._left - self.size]
        if data:
            self._take(data)
            self.size += len(data)


def _pull(path: str) -> str:
    return f"repository:{path}:pull"


def _push(path: str) -> str:
    return f"repository:{path}:pull,push"


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestMalformed:
        return None


def _explain(body: bytes) -> str:
    """What a registry says of an error, at most 200 characters of it."""
    try:
        value = decode(body, limit_bytes=ANSWER_SIZE_MAX, depth=16)
        first = value["errors"][0]  # type: ignore[index]  # whatever it is, it is looked at below
        return "".join(letter for letter in str(first["message"])[:200] if letter.isprintable())
    except (JsonMalformed, KeyError, IndexError, TypeError):
        return ""
