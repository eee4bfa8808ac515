"""The few messages of the FUSE kernel protocol that kitfs reads and writes itself.

The daemon answers the kernel's INIT, so that a worker can be replaced while the connection lives, and keeps a copy
of it for each worker's libfuse (``kitfs.fuse.handover``); a worker that follows a dead one asks for what was read and
never answered. All other messages are libfuse's business. Pure: bytes in, bytes out, no pyfuse3 and no files.

Structures and constants: ``/usr/include/linux/fuse.h`` (``fuse_in_header``, ``fuse_init_in``, ``fuse_init_out``,
``fuse_out_header``, INIT flags); ``FUSE_NOTIFY_RESEND`` and ``FUSE_HAS_RESEND`` came with protocol 7.40 (Linux 6.9,
``include/uapi/linux/fuse.h``). All fields have the byte order of the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

from kitfs.errors import FuseError, MalformedError

INIT_BUFFER_SIZE = 8192
"""Smallest buffer that the kernel accepts for reading a request (``FUSE_MIN_READ_BUFFER``); INIT needs 104 bytes."""

MAX_BACKGROUND = 64
"""Read-ahead requests under way at once: 4 readers at 3 ms a request reach 2098 MiB/s with 64, 1250 with 12."""

CONGESTION_THRESHOLD = MAX_BACKGROUND * 3 // 4
"""Where the kernel starts to call the connection congested; three quarters, as the kernel's own default."""

MAX_READAHEAD = 4 * 1024 * 1024
"""Upper bound for read-ahead; the kernel takes the smaller of this and what it offered (128 KiB)."""

MAX_PAGES = 256
"""Pages in one READ: 1 MiB requests, the most that libfuse 3.14 has buffers for."""

MAX_WRITE = 4096
"""The kernel's minimum: nothing is ever written."""

MAX_STACK_DEPTH = 1
"""How many stacked file systems a file may lie on that is passed through: none but ours, which leaves room for one
overlayfs on top; with 2 the kernel forbids that."""

_OPCODE_INIT = 26
_PROTOCOL = (7, 38)
_OLDEST_MINOR = 23
_IN_HEADER = struct.Struct("=IIQQIIIHH")
_INIT_IN = struct.Struct("=IIII")
_FLAGS = struct.Struct("=I")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
_FLAGS_AT = _IN_HEADER.size + 12
_FLAGS2_AT = _IN_HEADER.size + 16

_NOTIFY_RESEND = 7
RESEND_NOTIFICATION = _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0)
"""Written to the device, it makes the kernel queue again every request that was read and not answered.

Rule: once after the death of every process that could have read the device, when that process has been reaped.
"""


class InitFlag(IntFlag):
    """The INIT flags that kitfs knows by name (``FUSE_*`` in ``linux/fuse.h``)."""

    ASYNC_READ = 1 << 0
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.INIT_EXT
    | InitFlag.PASSTHROUGH
)
"""What kitfs asks for when the kernel offers it.

READDIRPLUS without READDIRPLUS_AUTO, because pyfuse3 serves no plain READDIR and overlayfs would get ENOSYS from it;
content never changes, so data is never invalidated by a changed mtime. PASSTHROUGH without WRITEBACK_CACHE, which would
disable it.
"""


class InitMalformed(MalformedError):
    """Bytes from a FUSE device that are not an INIT request."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the kernel's FUSE INIT request can not be read: {reason}")
        self.reason = reason


class ProtocolUnsupported(FuseError):
    """A kernel whose FUSE protocol is too old, or of another major version."""

    def __init__(self, major: int, minor: int) -> None:
        super().__init__(f"FUSE protocol {major}.{minor} of this kernel is not supported")
        self.major = major
        self.minor = minor

    hint = f"a kernel with FUSE protocol 7.{_OLDEST_MINOR} or a later 7.x is needed"


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The kernel's first request on a connection.

    Attributes:
        raw: The request as it was read.
        unique: The number under which it is answered.
        major: Protocol version of the kernel.
        minor: Protocol version of the kernel.
        max_readahead: What the kernel would read ahead, in bytes.
        flags: Everything that it offers, both words of flags in one.
    """

    raw: bytes
    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag

    @property
    def can_pass_through(self) -> bool:
        """Whether the kernel can serve an open file from another file (Linux 6.9 and newer)."""
        return InitFlag.PASSTHROUGH in self.flags


def parse_init(request: bytes) -> InitRequest:
    """Read an INIT request.

    Args:
        request: Exactly one message, as read from the device.

    Raises:
        InitMalformed: when it is cut short, of a wrong length or of another kind.
        ProtocolUnsupported: when the kernel speaks another major version, or one older than 7.23 (Linux 3.15).
    """
    if len(request) < _IN_HEADER.size + _INIT_IN.size:
        raise InitMalformed(f"{len(request)} bytes are too few")
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if length != len(request):
        raise InitMalformed(f"its length says {length} bytes, there are {len(request)}")
    if opcode != _OPCODE_INIT:
        raise InitMalformed(f"its opcode is {opcode}, not {_OPCODE_INIT}")
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if major != _PROTOCOL[0] or minor < _OLDEST_MINOR:
        raise ProtocolUnsupported(major, minor)
    if flags & InitFlag.INIT_EXT:
        if len(request) < _FLAGS2_AT + _FLAGS.size:
            raise InitMalformed(f"{len(request)} bytes are too few for its second word of flags")
        flags |= _FLAGS.unpack_from(request, _FLAGS2_AT)[0] << 32
    return InitRequest(bytes(request), unique, major, minor, max_readahead, InitFlag(flags))


def can_resend(offered: int) -> bool:
    """Whether a kernel that offers these flags understands ``RESEND_NOTIFICATION`` (Linux 6.9 and newer)."""
    return bool(offered & InitFlag.HAS_RESEND)


def negotiate(request: InitRequest) -> InitFlag:
    """The flags that hold for the connection: what the kernel offers and kitfs wants."""
    return request.flags & WANTED


def encode_init_reply(request: InitRequest) -> bytes:
    """The answer to INIT, 16 + 64 bytes (the form of ``fuse_init_out`` since protocol 7.23)."""
    flags = int(negotiate(request))
    body = _INIT_OUT.pack(
        _PROTOCOL[0],
        min(request.minor, _PROTOCOL[1]),
        MAX_READAHEAD,
        flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        MAX_WRITE,
        1,  # st_mtime has nanoseconds
        MAX_PAGES if flags & InitFlag.MAX_PAGES else 0,
        0,
        flags >> 32,
        MAX_STACK_DEPTH if flags & InitFlag.PASSTHROUGH else 0,
    )
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, request.unique) + body


def mask_init(request: InitRequest, negotiated: InitFlag) -> bytes:
    """The request as a worker's libfuse must see it: it offers only what was negotiated with the kernel.

    Not PASSTHROUGH, which is done behind libfuse's back.
    """
    flags = int(request.flags & negotiated & ~InitFlag.PASSTHROUGH)
    copy = bytearray(request.raw)
    _FLAGS.pack_into(copy, _FLAGS_AT, flags & 0xFFFFFFFF)
    if len(copy) >= _FLAGS2_AT + _FLAGS.size:
        _FLAGS.pack_into(copy, _FLAGS2_AT, flags >> 32)
    return bytes(copy)
