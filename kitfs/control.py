"""The control protocol between a command and the daemon: messages, framing, the socket's place, one connection.

The framing is Varlink's (https://varlink.org/Method-Call): one JSON object, then a NUL byte. A call is
``{"method": "org.kitfs.Control.Mount", "parameters": {…}}``, an answer ``{"parameters": {…}}``, a refusal
``{"error": "org.kitfs.Control.BusyError", "parameters": {"message": …, "hint": …}}``. A call is at most
``MESSAGE_SIZE_MAX`` bytes, an answer ``ANSWER_SIZE_MAX``; one call is under way per connection, and a call carries at
most one descriptor, ``Adopt`` as many as ``ADOPT_DESCRIPTORS_MAX``.

Used by ``kitfs.client`` (blocking, through ``ControlConnection``) and by ``kitfs.daemon.server`` (trio, through
``Framer``). Never imports trio, and never trusts a path: a socket is used only when it belongs to us or to root.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from kitfs import errors
from kitfs.errors import DaemonError, KitfsError, MalformedError
from kitfs.home import SYSTEM_HOME

INTERFACE = "org.kitfs.Control"
MESSAGE_SIZE_MAX = 64 << 10
"""Longest message to the daemon, its NUL not counted."""

ANSWER_SIZE_MAX = 8 << 20
"""Longest answer of the daemon: 1000 mounts with usual paths are 0.4 MiB."""

ADOPT_DESCRIPTORS_MAX = 4
"""Device, memory, lock, control socket."""

SYSTEM_SOCKET = Path("/run/kitfs/kitfs.sock")
SOCKET_PATH_SIZE_MAX = 107
"""Longest path of a socket (``sun_path`` is 108 bytes with its NUL, unix(7))."""

FUSE_DEVICE = os.makedev(10, 229)
"""/dev/fuse: misc major, FUSE_MINOR (Linux, ``Documentation/admin-guide/devices.txt``)."""

_FNV_OFFSET = 0x6C62272E07BB014262B821756295C58D
_FNV_PRIME = (1 << 88) + 0x13B
_FNV_MASK = (1 << 128) - 1

_INT = struct.Struct("@i")
_PEER = struct.Struct("@iII")


class MessageMalformed(MalformedError):
    """A message that breaks the framing, is not JSON, or has other fields than its method wants."""


class DaemonUnreachable(DaemonError):
    """Nobody answers at the socket, or the connection broke before the answer."""

    hint = "kitfs daemon --foreground   (shows what it says when it starts)"


class SocketUntrusted(DaemonError):
    """What lies at the socket's place, or who answers there, is neither ours nor root's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not used: {reason}")
        self.path = path


class Call(msgspec.Struct):
    """What a client sends."""

    method: str
    parameters: msgspec.Raw = msgspec.Raw(b"{}")


class Answer(msgspec.Struct, omit_defaults=True):
    """What the daemon sends: ``error`` is empty when the call was carried out."""

    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    error: str = ""


class Refusal(msgspec.Struct):
    """Parameters of an error.

    Attributes:
        message: What failed and why.
        hint: What helps.
        category: Its class in ``kitfs.errors``.
    """

    message: str = ""
    hint: str = ""
    category: str = ""

    @classmethod
    def of(cls, error: KitfsError) -> Self:
        """What is said of an error; the limits keep it inside a datagram."""
        category = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return cls(str(error)[:4096], error.hint[:1024], category.__name__)

    def to_error(self) -> KitfsError:
        """The error; one of a category that there is not is a ``DaemonError``."""
        category = getattr(errors, self.category, DaemonError)
        if not (isinstance(category, type) and issubclass(category, KitfsError)):
            category = DaemonError
        error = category(self.message or self.category)
        error.hint = self.hint
        return error


T = TypeVar("T")


def encode_call(method: str, parameters: Any) -> bytes:
    """A call as it goes over the socket, NUL included."""
    call = Call(f"{INTERFACE}.{method}", msgspec.Raw(msgspec.json.encode(parameters)))
    return msgspec.json.encode(call) + b"\0"


def encode_answer(parameters: Any) -> bytes:
    """An answer as it goes over the socket, NUL included."""
    return msgspec.json.encode(Answer(msgspec.Raw(msgspec.json.encode(parameters)))) + b"\0"


def encode_refusal(error: KitfsError) -> bytes:
    """An error as it goes over the socket: the category of ``kitfs.errors`` it belongs to, message and hint."""
    refusal = Refusal.of(error)
    raw = msgspec.json.encode(refusal)
    return msgspec.json.encode(Answer(msgspec.Raw(raw), f"{INTERFACE}.{refusal.category}")) + b"\0"


def parse_answer(message: bytes, kind: type[T]) -> T:
    """Read an answer.

    Raises:
        MessageMalformed: when it is none.
        KitfsError: what the daemon refused with, as the category that it named.
    """
    answer = parse_parameters(message, Answer)
    if not answer.error:
        return parse_parameters(answer.parameters, kind)
    refusal = parse_parameters(answer.parameters, Refusal)
    refusal.category = answer.error.rpartition(".")[2]
    raise refusal.to_error()


def parse_parameters(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Read JSON into a struct.

    Raises:
        MessageMalformed: when it is no JSON, or fields are missing or of another type.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageMalformed(f"not a control message: {error}") from None


class Framer:
    """Cuts a stream into messages. Holds at most one message and one received piece; reads nothing itself.

    Args:
        size_max: Longest message.
    """

    def __init__(self, size_max: int = MESSAGE_SIZE_MAX) -> None:
        self._buffer = bytearray()
        self._size_max = size_max

    def feed(self, piece: bytes) -> None:
        """Add what was received.

        Raises:
            MessageMalformed: when a message is longer than it may be; the stream is unusable then.
        """
        self._buffer += piece
        if len(self._buffer) > self._size_max and self._buffer.find(0, 0, self._size_max + 1) < 0:
            raise MessageMalformed(f"a message of more than {self._size_max} bytes")

    def find_message(self) -> bytes | None:
        """The next whole message without its NUL, or None when more must be fed."""
        end = self._buffer.find(0)
        if end < 0:
            return None
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return message


def socket_path(
    home: Path, override: Path | None = None, *, environ: Mapping[str, str] | None = None, uid: int | None = None
) -> Path:
    """Where the daemon of a store listens (one per store and uid).

    Makes no folder and looks at no socket; ``make_socket_folder`` and ``check_socket`` do.

    Args:
        home: The store's folder; its real path counts.
        override: What ``--socket`` said.
        environ: Environment, for ``XDG_RUNTIME_DIR``.
        uid: Whose daemon.
    """
    if override is not None:
        return override
    real = Path(os.path.realpath(home))
    if real == SYSTEM_HOME:
        return SYSTEM_SOCKET
    uid = os.geteuid() if uid is None else uid
    name = f"{_fnv1a(os.fsencode(real)):032x}.sock"
    runtime = (os.environ if environ is None else environ).get("XDG_RUNTIME_DIR", "")
    path = Path(runtime) / "kitfs" / name
    if _is_folder_of(runtime, uid) and len(os.fsencode(path)) <= SOCKET_PATH_SIZE_MAX:
        return path
    return Path(f"/tmp/kitfs-{uid}") / name


def _fnv1a(data: bytes) -> int:
    """FNV-1a, 128 bits (RFC 9923): tells stores apart; importing a checksum or digest would take longer."""
    state = _FNV_OFFSET
    for byte in data:
        state = (state ^ byte) * _FNV_PRIME & _FNV_MASK
    return state


def _is_folder_of(path: str, uid: int) -> bool:
    """Whether a user owns this folder; after ``sudo`` XDG_RUNTIME_DIR may still be somebody else's."""
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return path.startswith("/") and stat.S_ISDIR(status.st_mode) and status.st_uid == uid


def make_socket_folder(path: Path, *, override: bool = False) -> None:
    """Make the folder of a socket, 0700, and check that nobody else can write there.

    A folder that ``--socket`` named is the user's business and may be anyone's, as long as it exists.

    Raises:
        SocketUntrusted: when the folder is a link, somebody else's, or open to others.
        DaemonUnreachable: when it can not be made.
    """
    folder = path.parent
    if override:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise DaemonUnreachable(f"no folder for the daemon's socket: {error}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SocketUntrusted(folder, "it must be a folder of ours that nobody else can write to")


def check_socket(path: Path) -> None:
    """Look at what lies at the socket's place before connecting to it.

    Raises:
        FileNotFoundError: when nothing does.
        SocketUntrusted: when it is a link, no socket, or somebody else's.
    """
    status = path.lstat()
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketUntrusted(path, "it is not a socket")
    if os.geteuid() not in (0, status.st_uid):
        raise SocketUntrusted(path, f"it belongs to uid {status.st_uid}")


def peer_pid(connection: Any) -> int:
    """The process that connected a unix socket (SO_PEERCRED, unix(7)); 0 when our PID namespace has no such."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(raw)[0])


def peer_owner(connection: Any) -> tuple[int, int]:
    """The uid and gid at the other end of a connected unix socket (SO_PEERCRED, unix(7))."""
    _, uid, gid = _peer(connection)
    return uid, gid


def _peer(connection: Any) -> tuple[int, int, int]:
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid


def is_fuse_device(descriptor: int) -> bool:
    """Whether a descriptor is /dev/fuse, told by its device number, in whatever /dev it was opened."""
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == FUSE_DEVICE


def encode_descriptors(descriptors: Iterable[int]) -> list[tuple[int, int, bytes]]:
    """Ancillary data that carries descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_INT.pack, descriptors)))]


def parse_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message; they are the caller's to close."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found += [number for (number,) in _INT.iter_unpack(data[: len(data) - len(data) % _INT.size])]
    return found


class ControlConnection:
    """A blocking connection to the daemon. One thread, one call at a time; unusable after an error of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._framer = Framer(ANSWER_SIZE_MAX)

    @classmethod
    def connect(cls, path: Path, *, timeout_s: float = 5.0) -> Self:
        """Connect to the daemon at ``path``.

        Raises:
            DaemonUnreachable: when nobody listens there.
            SocketUntrusted: when the socket or who listens is neither ours nor root's.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout_s)
            check_socket(path)
            connection.connect(os.fspath(path))
            uid, _ = peer_owner(connection)
            if os.geteuid() not in (0, uid):
                raise SocketUntrusted(path, f"uid {uid} listens there")
        except OSError as error:
            connection.close()
            raise DaemonUnreachable(f"no daemon answers at {path}: {error.strerror or error}") from None
        except SocketUntrusted:
            connection.close()
            raise
        return cls(connection)

    def call(
        self, method: str, parameters: Any, answer: type[T], *, descriptors: Sequence[int] = (), timeout_s: float = 30.0
    ) -> T:
        """Call a method and wait for its answer.

        Raises:
            DaemonUnreachable: when the connection breaks or no answer comes in time.
            MessageMalformed: when the answer is none.
            KitfsError: what the daemon refused with.
        """
        deadline = time.monotonic() + timeout_s
        message = encode_call(method, parameters)
        if len(message) > MESSAGE_SIZE_MAX:
            raise MessageMalformed(f"a call of {len(message)} bytes, more than {MESSAGE_SIZE_MAX}")
        try:
            self._socket.settimeout(timeout_s)
            sent = self._socket.sendmsg([message], encode_descriptors(descriptors) if descriptors else [])
            if sent < len(message):  # an empty send is EPIPE where the daemon has answered and hung up already
                self._socket.sendall(message[sent:])
            return parse_answer(self._receive(deadline), answer)
        except TimeoutError:
            raise DaemonUnreachable(f"the daemon did not answer {method} within {timeout_s:g} s") from None
        except OSError as error:
            raise DaemonUnreachable(f"the connection to the daemon broke: {error.strerror or error}") from None

    def _receive(self, deadline: float) -> bytes:
        while (message := self._framer.find_message()) is None:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._socket.recv(MESSAGE_SIZE_MAX)
            if not piece:
                raise DaemonUnreachable("the daemon closed the connection without an answer")
            self._framer.feed(piece)
        return message

    @property
    def peer_pid(self) -> int:
        """The process that listens, 0 when it is in another namespace."""
        return _peer(self._socket)[0]

    def finish(self, *, timeout_s: float = 10.0) -> None:
        """Say that no call follows, and wait until the daemon has closed its end; at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                if not self._socket.recv(MESSAGE_SIZE_MAX):
                    break

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
