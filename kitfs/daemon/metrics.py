"""Metrics for Prometheus over HTTP, on a unix socket or a loopback port; off unless an address is given.

Used by ``kitfs.daemon.service``, which imports this only then. One answer a connection: ``GET /metrics``. At most
``CONNECTIONS_MAX`` are served at once and the next is closed at once; each has ``REQUEST_TIMEOUT_S`` to ask in
``REQUEST_SIZE_MAX`` bytes. A failure here never ends the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import trio

from kitfs.daemon.address import parse_address
from kitfs.daemon.exposition import encode_metrics
from kitfs.daemon.overview import Overview
from kitfs.errors import DaemonError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
REQUEST_TIMEOUT_S = 5.0
REQUEST_SIZE_MAX = 8 << 10
_BACKLOG = 64
_FULL_S = 0.1
_GONE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)


class MetricsUnavailable(DaemonError):
    """Nothing can be listened at where metrics are to be served."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"no metrics can be served at {address}: {reason}")
        self.address = address
        self.hint = "choose another address (--metrics, KITFS_METRICS, daemon.metrics), or off"


@contextlib.contextmanager
def open_listener(address: str) -> Iterator[socket.socket]:
    """Listen at an address. A socket that nobody listens at is replaced, and ours goes in the end.

    Raises:
        AddressRefused: when it is no address of this machine's own.
        MetricsUnavailable: when it is taken, or can not be had.
    """
    place = parse_address(address)
    if place is None:
        raise MetricsUnavailable(address, "they are off")
    family = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            if isinstance(place, Path):
                _clear(place)
                listener.bind(os.fspath(place))
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise MetricsUnavailable(address, error.strerror or str(error)) from None
        try:
            yield listener
        finally:
            if isinstance(place, Path):
                with contextlib.suppress(OSError):
                    place.unlink()


def _clear(path: Path) -> None:
    """Remove a socket of ours that a dead daemon left; whatever else lies there makes ``bind`` fail."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
            except BlockingIOError:  # somebody listens, and has many who wait
                return


async def serve_metrics(listener: socket.socket, overview: Overview) -> None:
    """Answer until cancelled. Takes over the listener."""
    accepting = trio.socket.from_stdlib_socket(listener)
    places = trio.CapacityLimiter(CONNECTIONS_MAX)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream, _ = await accepting.accept()
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                await trio.sleep(_FULL_S)
                continue
            try:
                places.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                stream.close()
                continue
            nursery.start_soon(_converse, stream, overview, places)


async def _converse(stream: trio.socket.SocketType, overview: Overview, places: trio.CapacityLimiter) -> None:
    try:
        with trio.fail_after(REQUEST_TIMEOUT_S):
            request = await _receive(stream)
        if request is not None:
            answer = await _answer(request, overview)
            with trio.fail_after(REQUEST_TIMEOUT_S):
                while answer:
                    answer = answer[await stream.send(answer) :]
    except (OSError, trio.TooSlowError) as error:
        log.debug("a reader of metrics is gone: %r", error)
    except Exception:  # numbers are not worth a mount
        log.exception("metrics")
    finally:
        stream.close()
        places.release_on_behalf_of(stream)


async def _receive(stream: trio.socket.SocketType) -> bytes | None:
    """The head of a request, or None when there is no whole one."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = await stream.recv(REQUEST_SIZE_MAX)
        head += piece
        if not piece or len(head) > REQUEST_SIZE_MAX:
            return None
    return head.partition(b"\r\n\r\n")[0]


async def _answer(request: bytes, overview: Overview) -> bytes:
    lines = request.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if method not in ("GET", "HEAD"):
        return _encode("405 Method Not Allowed", "text/plain", b"GET only\n")
    if path != "/metrics":
        return _encode("404 Not Found", "text/plain", b"/metrics\n")
    accepted = next((line.partition(":")[2] for line in lines[1:] if line.lower().startswith("accept:")), "")
    status = await overview.describe()
    kind, body = await trio.to_thread.run_sync(encode_metrics, status, overview.home, accepted.strip())
    answer = _encode("200 OK", kind, body)
    return answer[: len(answer) - len(body)] if method == "HEAD" else answer


def _encode(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body
