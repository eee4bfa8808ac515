"""zlib's `inflate` itself, through ctypes: it stops at the blocks of a deflate stream, which no Python binding offers.

Used by `block_inflater` to find checkpoints. Two libraries speak the interface (https://zlib.net/manual.html): the
extension module of the zlib-ng wheel exports `zng_inflate*` (zlib-ng's `zlib-ng.h`), and `libz.so.1` has `inflate*`;
their streams differ in the width of some fields. The interpreter lock is released while they run. An `Inflater` is one
thread's. Whether a library does what is expected is for `builders` to find out.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

from kitfs.errors import KitfsError

NO_FLUSH = 0
STOP_AT_BLOCK = 5
"""zlib's ``Z_BLOCK``: return at the next end of a block."""

OK, STREAM_END, BUFFER_ERROR, VERSION_ERROR = 0, 1, -5, -6

INPUT_SIZE = 512 << 10
"""Bytes that an inflater is given at once, at most."""

_RAW_WINDOW_BITS = -15
_AT_BLOCK = 128
_LAST_BLOCK = 64


class InflateUnusable(KitfsError):
    """A library that is not there, or does not have what is needed.

    Attributes:
        name: Which one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} can not be used to find blocks in deflate streams: {reason}")
        self.name = name


class _ZlibNgStream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint32),
        ("total_in", ctypes.c_size_t),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint32),
        ("total_out", ctypes.c_size_t),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_uint32),
        ("reserved", ctypes.c_ulong),
    )


class _ZlibStream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class InflateLibrary:
    """One library's functions and the layout of its stream.

    Attributes:
        name: For people.
    """

    def __init__(self, name: str, path: str, prefix: str, stream: type[ctypes.Structure], stream_size: int) -> None:
        """Load a library.

        Args:
            name: For people.
            path: What `dlopen` takes.
            prefix: Of its functions' names.
            stream: The layout of its stream.
            stream_size: How large that is in its header file, for the machines that we know.

        Raises:
            InflateUnusable: when it is not there or lacks a function.
        """
        self.name = name
        self.stream = stream
        if ctypes.sizeof(stream) != stream_size:
            raise InflateUnusable(name, f"its stream has {ctypes.sizeof(stream)} bytes here, expected {stream_size}")
        try:
            library = ctypes.CDLL(path)
            self._init = library[f"{prefix}inflateInit2_"]
            self.inflate: Callable[[Any, int], int] = library[f"{prefix}inflate"]
            self.reset: Callable[[Any], int] = library[f"{prefix}inflateReset"]
            self.end: Callable[[Any], int] = library[f"{prefix}inflateEnd"]
            version = library["zlibng_version" if prefix else "zlibVersion"]
        except (OSError, AttributeError) as error:
            raise InflateUnusable(name, str(error)) from error
        version.restype = ctypes.c_char_p
        self._version = version()
        self._init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)

    def init(self, stream: ctypes.Structure, size: int) -> int:
        """Prepare a stream for raw deflate data; `size` is what it must have, by the caller's account."""
        return int(self._init(ctypes.byref(stream), _RAW_WINDOW_BITS, self._version, size))


def load_zlib_ng() -> InflateLibrary:
    """The functions that the zlib-ng wheel exports.

    Raises:
        InflateUnusable: when they are not there.
    """
    name = "zlib-ng"
    found = importlib.util.find_spec("zlib_ng.zlib_ng")
    if found is None or found.origin is None:
        raise InflateUnusable(name, "it is not installed")
    return InflateLibrary(name, found.origin, "zng_", _ZlibNgStream, 104)


def load_zlib() -> InflateLibrary:
    """The system's zlib.

    Raises:
        InflateUnusable: when it is not there.
    """
    return InflateLibrary("zlib", "libz.so.1", "", _ZlibStream, 112)


class Inflater:
    """Decodes one raw deflate stream into buffers of the caller's; `reset` begins another.

    Attributes:
        message: What the library said of the last error.
    """

    def __init__(self, library: InflateLibrary) -> None:
        """Prepare a stream.

        Raises:
            InflateUnusable: when the library refuses.
        """
        self._library = library
        self._stream: Any = library.stream()
        self._reference = ctypes.byref(self._stream)
        self._input = bytearray(INPUT_SIZE)
        self._input_address = _address(self._input)
        self._is_open = False
        code = library.init(self._stream, ctypes.sizeof(self._stream))
        if code != OK:
            raise InflateUnusable(library.name, f"inflateInit2 gave {code}")
        self._is_open = True

    def __del__(self) -> None:
        if self._is_open:
            self._is_open = False
            self._library.end(self._reference)

    @property
    def message(self) -> str:
        """What the library said of the last error."""
        return (self._stream.msg or b"it stops before its end").decode("ascii", "replace")

    @property
    def input_left(self) -> int:
        """Bytes of the input that are not consumed yet."""
        return int(self._stream.avail_in)

    @property
    def block_bits(self) -> int | None:
        """At the end of a block that is not the last: bits of the last consumed byte that follow it, else None."""
        kind = int(self._stream.data_type)
        return kind & 7 if kind & _AT_BLOCK and not kind & _LAST_BLOCK else None

    @property
    def is_after_last_block(self) -> bool:
        """Whether it stopped behind the last block, and has not said yet that the stream ends."""
        return int(self._stream.data_type) & (_AT_BLOCK | _LAST_BLOCK) == _AT_BLOCK | _LAST_BLOCK

    def reset(self) -> None:
        """Begin another stream; what is left of the input is forgotten."""
        self._library.reset(self._reference)
        self._stream.avail_in = 0

    def load(self, data: memoryview) -> None:
        """Take the next input, `INPUT_SIZE` bytes at most; it is copied."""
        size = len(data)
        self._input[:size] = data
        self._stream.next_in = self._input_address
        self._stream.avail_in = size

    def run(self, output: OutputBuffer, size: int, flush: int) -> int:
        """Decode at most `size` bytes to the end of what the buffer holds; the library's return code."""
        self._stream.next_out = output.address + output.stop
        self._stream.avail_out = size
        code = int(self._library.inflate(self._reference, flush))
        output.stop += size - int(self._stream.avail_out)
        return code


class OutputBuffer:
    """Memory that an inflater writes to; parts that are full are taken as views, the rest is written later.

    Attributes:
        size: Bytes in all.
        address: Of the first.
        stop: Bytes written so far.
    """

    __slots__ = ("_start", "_view", "address", "size", "stop")

    def __init__(self, size: int) -> None:
        memory = bytearray(size)
        self._view = memoryview(memory)
        self._start = 0
        self.size = size
        self.address = _address(memory)
        self.stop = 0

    @property
    def room(self) -> int:
        """Bytes that can still be written."""
        return self.size - self.stop

    @property
    def pending(self) -> int:
        """Bytes that were written and not taken."""
        return self.stop - self._start

    def take(self) -> memoryview:
        """What was written since the last call."""
        view = self._view[self._start : self.stop]
        self._start = self.stop
        return view


def _address(memory: bytearray) -> int:
    """Where a bytearray lies; true until it is resized, and these never are."""
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))
