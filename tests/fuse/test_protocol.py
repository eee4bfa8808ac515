"""INIT and RESEND, byte for byte."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.fuse.protocol import (
    RESEND_NOTIFICATION,
    InitFlag,
    InitMalformed,
    ProtocolUnsupported,
    can_resend,
    encode_init_reply,
    mask_init,
    negotiate,
    parse_init,
)

EVERYTHING = 0xFFFFFFFF


def _init(*, minor=45, flags=EVERYTHING, flags2=EVERYTHING, major=7, opcode=26, unique=2, extended=True):
    body = struct.pack("=IIII", major, minor, 131072, flags)
    if extended:
        body += struct.pack("=I44x", flags2)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 0, 0, 0, 0, 0, 0) + body


def test_request_of_a_current_kernel_is_read_with_both_words_of_flags():
    """A request of 104 bytes gives the version, the read-ahead and flags above bit 31."""
    request = parse_init(_init(unique=7, flags2=1 << 7))
    assert (request.unique, request.major, request.minor, request.max_readahead) == (7, 7, 45, 131072)
    assert can_resend(request.flags)
    assert not request.can_pass_through


def test_request_of_an_older_kernel_has_no_second_word():
    """A request of 56 bytes, protocol 7.35 and older, is read too."""
    request = parse_init(_init(minor=31, flags=EVERYTHING & ~InitFlag.INIT_EXT, extended=False))
    assert not can_resend(request.flags)
    assert negotiate(request) & InitFlag.INIT_EXT == 0
    assert len(mask_init(request, negotiate(request))) == 56


def test_reply_has_the_64_byte_form_and_the_negotiated_numbers():
    """Every field of the reply to a kernel that offers everything is as designed."""
    reply = encode_init_reply(parse_init(_init(unique=11)))
    assert len(reply) == 16 + 64
    assert struct.unpack_from("=IiQ", reply) == (80, 0, 11)
    major, minor, readahead, flags, background, congestion, write, gran, pages, align, flags2, stack_depth = (
        struct.unpack_from("=IIIIHHIIHHII", reply, 16)
    )
    assert (major, minor) == (7, 38)
    assert readahead == 4 * 1024 * 1024
    assert (background, congestion, write, gran, pages, align) == (64, 48, 4096, 1, 256, 0)
    assert (flags2, stack_depth) == (InitFlag.PASSTHROUGH >> 32, 1)
    for on in ("ASYNC_READ", "DO_READDIRPLUS", "PARALLEL_DIROPS", "MAX_PAGES", "EXPLICIT_INVAL_DATA", "INIT_EXT"):
        assert flags & InitFlag[on], on
    for off in ("READDIRPLUS_AUTO", "WRITEBACK_CACHE", "AUTO_INVAL_DATA"):
        assert not flags & InitFlag[off], off
    assert reply[16 + 40 :] == bytes(24)


def test_reply_asks_for_nothing_that_was_not_offered():
    """A kernel that offers nothing gets no flags and no max_pages, and never a newer version than its own."""
    reply = encode_init_reply(parse_init(_init(minor=30, flags=0, extended=False)))
    assert struct.unpack_from("=IIII", reply, 16) == (7, 30, 4 * 1024 * 1024, 0)
    assert struct.unpack_from("=HH", reply, 16 + 28) == (0, 0)
    assert struct.unpack_from("=I", reply, 16 + 36) == (0,)


def test_masked_copy_differs_in_flags_only():
    """libfuse sees the kernel's request with the flags of both words cut to what was negotiated, but passthrough."""
    request = parse_init(_init())
    copy = mask_init(request, negotiate(request))
    assert parse_init(copy).flags == negotiate(request) & ~InitFlag.PASSTHROUGH
    assert copy[:52] == request.raw[:52]
    assert copy[60:] == request.raw[60:]


def test_resend_notification_is_a_header_with_number_zero():
    """RESEND is a bare fuse_out_header of 16 bytes: unique 0, error 7."""
    assert struct.pack("=IiQ", 16, 7, 0) == RESEND_NOTIFICATION


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        _init()[:55],
        _init() + b"x",
        _init(opcode=1),
        _init(extended=False),
    ],
    ids=["empty", "cut-short", "too-long", "another-opcode", "no-second-word"],
)
def test_anything_else_is_refused(request_):
    """Bytes that are not one whole INIT request are refused with a named error."""
    with pytest.raises(InitMalformed):
        parse_init(request_)


@pytest.mark.parametrize(("major", "minor"), [(6, 30), (8, 0), (7, 22)])
def test_other_protocols_are_refused(major, minor):
    """Another major version, and one too old for the 64-byte reply, are refused."""
    with pytest.raises(ProtocolUnsupported):
        parse_init(_init(major=major, minor=minor))


@given(st.binary(max_size=200))
def test_no_bytes_make_parsing_fail_with_anything_else(data):
    """Whatever comes from a descriptor, the outcome is a request or one of the two named errors."""
    try:
        request = parse_init(data)
    except (InitMalformed, ProtocolUnsupported):
        return
    assert len(encode_init_reply(request)) == 80
