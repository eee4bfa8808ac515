"""Where metrics are served: a unix socket, or a port of this machine's own. Pure; imports neither trio nor a server.

The numbers name what is mounted and where, so nothing but loopback is listened on, whatever was asked for.
"""

from __future__ import annotations

import re
from pathlib import Path

from kitfs.control import SOCKET_PATH_SIZE_MAX
from kitfs.errors import UsageError

METRICS_VARIABLE = "KITFS_METRICS"
"""The environment variable by which a daemon is told, and its successor."""

_TCP = re.compile(r"(?:(?P<host>[^:\[\]]*|\[[0-9a-fA-F:]+\]):)?(?P<port>[0-9]{1,5})")


class AddressRefused(UsageError):
    """An address on which no metrics are served."""

    hint = "an address is /PATH of a unix socket, PORT, 127.0.0.1:PORT, [::1]:PORT, or off"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"no metrics at {text[:200]!r}: {reason}")
        self.text = text
        self.reason = reason


def parse_address(text: str) -> Path | tuple[str, int] | None:
    """Read an address: None for nowhere (``off``, or empty), a path, or host and port.

    Raises:
        AddressRefused: when it is none, or not this machine's own.
    """
    if text in ("", "off"):
        return None
    if text.startswith("/"):
        if "\0" in text or len(text.encode("utf-8", "surrogateescape")) > SOCKET_PATH_SIZE_MAX:
            raise AddressRefused(text, f"a socket's path has at most {SOCKET_PATH_SIZE_MAX} bytes")
        return Path(text)
    found = _TCP.fullmatch(text)
    if found is None:
        raise AddressRefused(text, "it is neither a path nor a port")
    host = (found["host"] or "").strip("[]")
    port = int(found["port"])
    if not 0 < port < 1 << 16:
        raise AddressRefused(text, f"there is no port {port}")
    host = "127.0.0.1" if host in ("", "localhost") else host
    import ipaddress  # 3 ms, for few

    try:
        is_own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own:
        raise AddressRefused(text, "only this machine's own addresses are listened on")
    return host, port
