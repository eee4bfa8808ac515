"""Tar headers: the bytes that `kit pack` writes."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.archive.tar_toc import MemberKind, TocReader
from kitfs.archive.tar_write import END_OF_ARCHIVE, MemberUnwritable, encode_member_header, padding

FILE, DIRECTORY = MemberKind.FILE, MemberKind.DIRECTORY


def archive(*members: tuple[bytes, bytes | None]) -> bytes:
    parts = []
    for name, data in members:
        kind = DIRECTORY if data is None else FILE
        body = data or b""
        mode = 0o755 if data is None else 0o644
        parts.append(encode_member_header(name, kind=kind, size=len(body), mode=mode) + body + padding(len(body)))
    return b"".join(parts) + END_OF_ARCHIVE


@pytest.mark.parametrize(
    ("members", "size", "sha256"),
    [
        (
            [(b"model", None), (b"model/a.txt", b"hello")],
            2560,
            "00e5dd8e8d846b7a2429dc8060bd2b9eea52c48a9b7022007cfda2dc2fa6b4ae",
        ),
        (
            [(b"model", None), (b"model/part1", None), (b"model/part1/lora.bin", b"w2"), (b"model/w.bin", b"w1")],
            4096,
            "6a9ea513b51fc2bc441cfc43b1580897960fd53627e73e96f126b07ba1a7c5d6",
        ),
    ],
)
def test_small_trees_have_the_digest_that_kit_gave_them(members, size, sha256):
    """Two trees that kit packed have the same size and digest here."""
    written = archive(*members)
    assert len(written) == size
    assert hashlib.sha256(written).hexdigest() == sha256


def test_layers_of_kit_are_written_again_byte_for_byte(shared_fixtures: Path):
    """Every plain tar layer that kit 1.7.0 packed comes out the same from its own table of contents."""
    blobs = shared_fixtures / "kit-v1.7.0/storage/blobs/sha256"
    layers = set()
    for blob in blobs.iterdir():
        raw = blob.read_bytes()
        if raw.startswith(b'{"schemaVersion"'):
            found = json.loads(raw)["layers"] or []
            layers |= {layer["digest"][7:] for layer in found if layer["mediaType"].endswith(".tar")}
    assert len(layers) >= 8
    for layer in layers:
        raw = (blobs / layer).read_bytes()
        pieces = TocReader().feed(raw)
        written = b"".join(
            encode_member_header(
                piece.member.path, kind=piece.member.kind, size=piece.member.size, mode=piece.member.mode
            )
            + piece.data
            + padding(piece.member.size)
            for piece in pieces
        )
        assert written + END_OF_ARCHIVE == raw


# Made by Go 1.26 archive/tar (tar.Header with Uid 1000): name, kind, size, mode, SHA-256 of the header blocks.
GO_HEADERS = [
    (b"a" * 100, "f", 5, 0o644, "433b683cea1c007849e7206ab38a10ff833b3908af905c760f86ba35f0210450"),
    (b"a" * 101, "f", 5, 0o644, "8c309d76721f467f89f265a1b1d397411fc539cc317f3f9a605f92e47b70cbb3"),
    (b"d" * 100 + b"/" + b"f" * 100, "f", 0, 0o600, "18a56ca96dca45472d71acfb40766c691e123a5f82e4880fc3cf011ea00e3fe2"),
    (
        b"d" * 155 + b"/" + b"f" * 100,
        "f",
        0,
        0o4755,
        "a8f8ba1f962a8704b0fb1802b0a92b7250cb892cdb12815b0bba92ebc883a4af",
    ),
    (b"d" * 156 + b"/" + b"f" * 10, "f", 0, 0o644, "7d0f6d382ce121868852841fb8499c4f6011fb407421138e02b29810bc800229"),
    (b"d/" * 50 + b"f" * 101, "f", 1, 0o644, "fa4395604cb37e7c9cbcb23f55fc95042f4e8908fc5b293e33db19b2d9d680f2"),
    ("модель/вес.bin".encode(), "f", 7, 0o644, "62f0af8fd6796e220661fb09165cf3512f8d75f597c2a0caf5f0053e62142a55"),
    (("é" * 120).encode(), "d", 0, 0o755, "5d85e46ca8af53df82ea3057694fda4b635e8edc4da3efe81060999782a3eba8"),
    (b"w", "f", 8589934591, 0o644, "d1257ef5d0b621a448cd94987909f737bb2e37894a30b5e3207cb00f3d2c3ad7"),
    (b"w", "f", 8589934592, 0o644, "afabe90ea5491c03e9b07f19b98ef308effc5f889f17723c90042d06ccc860c3"),
    (
        b"d" * 60 + b"/" + b"f" * 60,
        "f",
        1099511627776,
        0o644,
        "253ffa859b13b0eb99473681a38611757ffa1b1b9273d7996a5d78cf3c5f553b",
    ),
    (b"\xff\xfe/raw", "f", 3, 0o644, "09e06a2547b018616f009103befcc8ac08fe20c6d66866b725e1bc960809a83f"),
    (
        b"d" * 95 + b"/xxxx/" + b"y" * 101,
        "f",
        3,
        0o644,
        "3bc93dbaecbb09bb99571918d058677e57f6b580c0e2ae403306d85176df57f8",
    ),
    (
        b"x" * 99 + b"/" + "ééé".encode(),
        "f",
        3,
        0o644,
        "4579969cf4178308d278b3b2bb90859407d56af2d59f3e44fa0b37bc19f6bbcf",
    ),
    (b"dir", "d", 0, 0o7777, "d013d558064450f828e45305a5c6a6406483d5f87d9dc37af620c0810bde5eec"),
]


@pytest.mark.parametrize(("name", "kind", "size", "mode", "sha256"), GO_HEADERS)
def test_awkward_headers_are_those_of_go(name, kind, size, mode, sha256):
    """Prefix splits, PAX paths and sizes, ASCII-stripped names: the header blocks equal Go's."""
    header = encode_member_header(name, kind=FILE if kind == "f" else DIRECTORY, size=size, mode=mode)
    assert hashlib.sha256(header).hexdigest() == sha256


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=130).filter(
        lambda part: part not in (".", "..") and len(part.encode()) <= 255
    ),
    min_size=1,
    max_size=8,
).map(lambda parts: "/".join(parts).encode())


@given(NAMES, st.integers(0, 0o7777), st.sampled_from([0, 1, 511, 512, 513]))
def test_what_is_written_reads_back(name, mode, size):
    """Any clean name, mode and size reads back the same, here and in tarfile."""
    raw = encode_member_header(name, kind=FILE, size=size, mode=mode) + bytes(size) + padding(size) + END_OF_ARCHIVE
    reader = TocReader()
    members = [piece.member for piece in reader.feed(raw)]
    reader.close()
    assert [(member.path, member.mode, member.size) for member in members] == [(name, mode, size)]
    with tarfile.open(fileobj=io.BytesIO(raw)) as other:
        (info,) = other.getmembers()
    assert (info.name, info.mode, info.size, info.uid, info.gid) == (name.decode(), mode, size, 1000, 0)


@given(st.integers(0, 1 << 62))
def test_any_size_reads_back(size):
    """Sizes up to 4 EiB are recorded right, beyond 8 GiB in a PAX record."""
    header = encode_member_header(b"weights", kind=FILE, size=size, mode=0o644)
    assert (len(header) == 512) == (size < 8 << 30)
    reader = TocReader()
    pieces = reader.feed(header + b"x")
    assert size == 0 or pieces[0].member.size == size


@pytest.mark.parametrize("name", [b"", b"/a", b"a/", b"a//b", b"a/../b", b"./a", b"a\0b", b"..", b"x" * (1 << 20)])
def test_a_name_that_the_format_can_not_hold_is_refused(name):
    """Names that are not clean relative paths, or too long for a PAX header, are an error with the name in it."""
    with pytest.raises(MemberUnwritable) as caught:
        encode_member_header(name, kind=FILE, size=0, mode=0o644)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("kind", "size", "mode"), [(FILE, -1, 0), (FILE, 1 << 63, 0), (DIRECTORY, 1, 0), (FILE, 0, 1 << 12)]
)
def test_impossible_sizes_and_modes_are_refused(kind, size, mode):
    """A negative or huge size, a directory with a size, and mode bits above 0o7777 are errors."""
    with pytest.raises(MemberUnwritable):
        encode_member_header(b"a", kind=kind, size=size, mode=mode)
