"""Reading a tar's table of contents: what is listed, what is refused and why, whatever the pieces."""

import io
import random
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.archive.tar_toc import MemberKind, TarMalformed, TocLimits, TocReader
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding

OCTAL_FIELDS = {"mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)}


def header(name=b"f", typeflag=b"0", *, magic=b"ustar\x0000", prefix=b"", sum_=None, **numbers) -> bytes:
    """One header block; numbers are ints, or bytes to be taken as they are."""
    block = bytearray(512)
    block[: len(name)] = name
    for field, (at, size) in OCTAL_FIELDS.items():
        value = numbers.get(field, 0o644 if field == "mode" else 0)
        block[at : at + size] = (b"%0*o\0" % (size - 1, value) if isinstance(value, int) else value).ljust(size, b"\0")
    block[156:157] = typeflag
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) if sum_ is None else sum_)
    return bytes(block)


def member(name=b"f", data=b"", typeflag=b"0", **fields) -> bytes:
    return header(name, typeflag, **{"size": len(data)} | fields) + data + padding(len(data))


def pax(*records: tuple[bytes, bytes], body: bytes | None = None) -> bytes:
    if body is None:
        body = b""
        for key, value in records:
            rest = b" %b=%b\n" % (key, value)
            length = len(rest) + len(str(len(rest)))
            body += b"%d%b" % (len(rest) + len(str(length)), rest)
    return member(b"PaxHeaders.0/f", body, b"x")


def long_name(name: bytes) -> bytes:
    return member(b"././@LongLink", name, b"L")


def read(raw: bytes, size: int | None = None, limits: TocLimits | None = None) -> dict[bytes, tuple[int, bytes, int]]:
    """Path to (kind, data, mode); pieces are checked on the way."""
    reader = TocReader(limits)
    found: dict[bytes, tuple[int, bytes, int]] = {}
    under_way = None
    for at in range(0, len(raw), size or len(raw) or 1):
        for piece in reader.feed(memoryview(raw)[at : at + (size or len(raw))]):
            path = piece.member.path
            assert piece.starts == (path not in found)
            assert under_way in (None, path)
            kind, data, mode = found.get(path, (piece.member.kind, b"", piece.member.mode))
            assert raw[piece.member.offset + len(data) :].startswith(bytes(piece.data))
            found[path] = (int(kind), data + bytes(piece.data), mode)
            assert piece.ends == (len(found[path][1]) == piece.member.size)
            under_way = None if piece.ends else path
    reader.close()
    return found


def refusal(raw: bytes, size: int | None = None, limits: TocLimits | None = None) -> TarMalformed:
    with pytest.raises(TarMalformed) as caught:
        read(raw, size, limits)
    return caught.value


END = END_OF_ARCHIVE
LONG = b"x" * 255


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        pytest.param(member() + END, [b"f"], id="one file"),
        pytest.param(member(b"./", typeflag=b"5") + member(b"./a/f") + END, [b"a/f"], id="root and leading dot"),
        pytest.param(member(b".", typeflag=b"5") + END, [], id="nothing but the root"),
        pytest.param(member(b"a//b/./c") + END, [b"a/b/c"], id="doubled slash"),
        pytest.param(member(b"d/", typeflag=b"5") + END, [b"d"], id="directory with a slash"),
        pytest.param(member(b"d/f") + member(b"d", typeflag=b"5") + END, [b"d/f", b"d"], id="directory after its file"),
        pytest.param(member(b"d/", typeflag=b"\0", magic=bytes(8)) + END, [b"d"], id="V7 directory"),
        pytest.param(member(b"f", typeflag=b"\0", magic=bytes(8)) + END, [b"f"], id="V7 file"),
        pytest.param(member(b"f", prefix=b"a/b") + END, [b"a/b/f"], id="ustar prefix"),
        pytest.param(member(b"f", magic=b"ustar  \0") + END, [b"f"], id="GNU"),
        pytest.param(long_name(b"a/" * 200 + b"f\0") + member() + END, [b"a/" * 200 + b"f"], id="GNU long name"),
        pytest.param(pax((b"path", b"a/" * 200 + b"f")) + member() + END, [b"a/" * 200 + b"f"], id="PAX path"),
        pytest.param(pax((b"mtime", b"-1.5"), (b"comment", b"x")) + member() + END, [b"f"], id="PAX times"),
        pytest.param(pax((b"size", b"3")) + header() + b"abc" + padding(3) + END, [b"f"], id="PAX size wins"),
        pytest.param(member(b"f", b"abc", size=b"\x80" + bytes(10) + b"\3") + END, [b"f"], id="base-256 size"),
        pytest.param(member(b"\xff\n\\ \x01") + END, [b"\xff\n\\ \x01"], id="odd bytes"),
        pytest.param(
            member("\u00e9".encode()) + member("e\u0301".encode()) + END, [b"\xc3\xa9", b"e\xcc\x81"], id="NFC, NFD"
        ),
        pytest.param(member(b"f") + member(b"f-x") + END, [b"f", b"f-x"], id="one name starts the other"),
        pytest.param(member(b"a..b/..c") + END, [b"a..b/..c"], id="dots inside names"),
        pytest.param(member(b"f", uid=b"\xff" * 8, gid=b"7777777\0", mtime=b"\xff" * 12) + END, [b"f"], id="odd ids"),
        pytest.param(member(b"f", uid=b"", gid=b"", mtime=b"") + END, [b"f"], id="fields of NULs"),
        pytest.param(member(), [b"f"], id="no end blocks"),
        pytest.param(member() + bytes(512), [b"f"], id="a single zero block at the end"),
        pytest.param(member() + END + b"garbage", [b"f"], id="data after the end"),
        pytest.param(member() + END + member(b"g") + END, [b"f"], id="two archives, the first counts"),
        pytest.param(END, [], id="nothing in it"),
        pytest.param(member() + bytes(10240), [b"f"], id="padded to a record"),
    ],
)
def test_what_all_readers_agree_on_is_listed(raw, paths):
    """Every form that V7, ustar, GNU and PAX writers make is listed, in order, with clean paths."""
    assert list(read(raw)) == paths


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        # names
        pytest.param(member(b"../x") + END, "'..'", id="escape"),
        pytest.param(member(b"a/../../x") + END, "'..'", id="escape further down"),
        pytest.param(member(b"a/..", typeflag=b"5") + END, "'..'", id="dot dot that stays inside"),
        pytest.param(member(b"/abs") + END, "absolute", id="absolute"),
        pytest.param(member(b"f", prefix=b"/a") + END, "absolute", id="absolute by its prefix"),
        pytest.param(pax((b"path", b"/abs")) + member() + END, "absolute", id="absolute by PAX"),
        pytest.param(member(b"") + END, "without a name", id="empty name"),
        pytest.param(member(b"", typeflag=b"5") + END, "without a name", id="directory with an empty name"),
        pytest.param(member(b".") + END, "without a name", id="root as a file"),
        pytest.param(member(b"a/.") + END, "without a name", id="file named dot"),
        pytest.param(member(b"f/") + END, "slash after the name of a file", id="slash after a file"),
        pytest.param(pax((b"path", b"f/")) + member() + END, "slash after", id="slash after a PAX path"),
        pytest.param(pax((b"path", b"d")) + member(b"d/", typeflag=b"\0") + END, "slash after", id="slash in one name"),
        pytest.param(long_name(LONG + b"x") + member() + END, "component longer", id="256-byte component"),
        pytest.param(
            pax((b"path", (b"x" * 240 + b"/") * 17 + b"y")) + member() + END, "longer than 4096", id="long path"
        ),
        pytest.param(pax((b"path", b"a/" * 10_000 + b"f")) + member() + END, "longer than 4096", id="depth 10 000"),
        # links, devices
        *[
            pytest.param(member(b"f", typeflag=flag) + END, reason, id=reason)
            for flag, reason in [
                (b"1", "hard link"),
                (b"2", "symbolic link"),
                (b"3", "character device"),
                (b"4", "block device"),
                (b"6", "fifo"),
                (b"7", "contiguous"),
                (b"s", "unknown type"),
                (b"A", "unknown type"),
                (b"g", "global extended header"),
                (b"S", "sparse"),
                (b"D", "directory dump"),
                (b"K", "long link name"),
                (b"M", "multi-volume"),
                (b"V", "volume label"),
                (b"X", "Solaris"),
            ]
        ],
        pytest.param(pax((b"linkpath", b"g")) + member() + END, "a link or a sparse", id="link by PAX"),
        # duplicates
        pytest.param(member() + member() + END, "occurs twice", id="same file twice"),
        pytest.param(member(b"d", typeflag=b"5") * 2 + END, "occurs twice", id="same directory twice"),
        pytest.param(member(b"a") + member(b"a", typeflag=b"5") + END, "occurs twice", id="file and directory"),
        pytest.param(member(b"a", typeflag=b"5") + member(b"a/", typeflag=b"5") + END, "occurs twice", id="a and a/"),
        pytest.param(member(b"a/b") + member(b"a//b") + END, "occurs twice", id="a/b and a//b"),
        pytest.param(member(b"a") + member(b"a/b") + END, "used as a directory", id="file, then below it"),
        pytest.param(member(b"a/b/c") + member(b"a/b") + END, "path of a directory", id="below it, then file"),
        # headers
        pytest.param(header(sum_=1) + END, "checksum is wrong", id="wrong checksum"),
        pytest.param(b"\x1f\x8b" + bytes(1022), "checksum is not a number", id="gzip in a tar's place"),
        pytest.param(member(size=b"-0000000001") + END, "not a number", id="negative octal size"),
        pytest.param(member(size=b"\xff" * 12) + END, "size -1", id="negative base-256 size"),
        pytest.param(member(size=b"\x80" + bytes(3) + b"\x80" + bytes(7)) + END, "not a number", id="size 2**63"),
        pytest.param(member(size=b"\x80\0\0\0\x7f" + b"\xff" * 7) + END, "size 9223372036854775807", id="size 2**63-1"),
        pytest.param(member(size=b"12 34") + END, "not a number", id="size that readers cut differently"),
        pytest.param(member(size=b"           ") + END, "not a number", id="size of spaces"),
        pytest.param(member(mode=b"0o644") + END, "mode is not a number", id="mode that only Python reads"),
        pytest.param(member(uid=b"1_000") + END, "user id is not a number", id="id that only Python reads"),
        pytest.param(member(typeflag=b"5", data=b"abc") + END, "directory with a size", id="directory with a size"),
        pytest.param(pax((b"size", b"1")) + header(b"d", b"5") + END, "directory with a size", id="the same by PAX"),
        pytest.param(member(magic=b"ustar  \0", prefix=b"0000") + END, "prefix", id="GNU header with times"),
        pytest.param(member(magic=bytes(8), prefix=b"p") + END, "prefix", id="V7 header with a prefix"),
        # extended headers
        pytest.param(pax(body=b"-5 path=a\n") + member() + END, "without a length", id="negative record"),
        pytest.param(pax(body=b"999999999 path=a\n") + member() + END, "without a length", id="record of 1e9"),
        pytest.param(pax(body=b"99 path=a\n") + member() + END, "wrong length", id="record beyond its header"),
        pytest.param(pax(body=b"8 path=a\n") + member() + END, "wrong length", id="record that is one short"),
        pytest.param(pax(body=b"3 \n") + member() + END, "wrong length", id="record without key"),
        pytest.param(pax(body=b"4 =\n") + member() + END, "wrong length", id="record with an empty key"),
        pytest.param(pax(body=b"0 path=a\n") + member() + END, "without a length", id="record of no length"),
        pytest.param(pax(body=b"path=a\n") + member() + END, "without a length", id="no length at all"),
        pytest.param(pax((b"path", b"a\0b")) + member() + END, "bad value", id="NUL in a path"),
        pytest.param(pax((b"path", b"")) + member() + END, "bad value", id="empty path"),
        pytest.param(pax((b"size", b"-1")) + member() + END, "bad value", id="negative PAX size"),
        pytest.param(pax((b"size", b"9223372036854775808")) + member() + END, "bad value", id="PAX size 2**63"),
        pytest.param(pax((b"mtime", b"nan")) + member() + END, "bad value", id="PAX time that is none"),
        pytest.param(pax((b"hdrcharset", b"latin1")) + member() + END, "bad value", id="unknown charset"),
        pytest.param(pax((b"path", b"a"), (b"path", b"b")) + member() + END, "repeats", id="two paths"),
        pytest.param(pax((b"GNU.sparse.major", b"1")) + member() + END, "sparse", id="PAX sparse file"),
        pytest.param(pax((b"path", b"a")) * 2 + member() + END, "several", id="two extended headers"),
        pytest.param(long_name(b"a\0") * 1000 + member() + END, "several", id="chained long names"),
        pytest.param(pax((b"path", b"a")) + long_name(b"b\0") + member() + END, "several", id="PAX and GNU names"),
        pytest.param(pax((b"path", b"a")) + END, "without its member", id="extended header, then the end"),
        pytest.param(pax((b"path", b"a")), "without its member", id="extended header, then nothing"),
        pytest.param(header(b"L", b"L", size=2 << 30), "limit 4097", id="long name of 2 GiB"),
        pytest.param(header(b"x", b"x", size=1 << 30), "limit 1048576", id="extended header of 1 GiB"),
        pytest.param(header(b"x", b"x", size=0) + member() + END, "0 bytes", id="empty extended header"),
        pytest.param(long_name(b"a\0b") + member() + END, "NUL", id="NUL in a long name"),
        pytest.param(long_name(b"\0") + member() + END, "empty", id="empty long name"),
        # ends
        pytest.param(b"", "empty", id="no bytes"),
        pytest.param(member(b"f", b"abc")[:600], "inside a block", id="cut in the padding"),
        pytest.param(member(b"f", b"abc")[:514], "1 bytes of data are missing", id="cut in the data"),
        pytest.param(member()[:300], "inside a block", id="cut in a header"),
        pytest.param(member() + bytes(100), "inside a block", id="cut in the first zero block"),
        pytest.param(pax((b"path", b"abc"))[:515], "extended header without", id="cut in an extended header"),
        pytest.param(member() + bytes(512) + member(b"g") + END, "single zero block", id="member after a zero block"),
    ],
)
def test_what_readers_disagree_on_is_refused(raw, reason):
    """Every hostile form is a `TarMalformed` that says what is wrong, in whatever pieces it comes."""
    error = refusal(raw)
    assert reason in str(error)
    for size in (7, 512):
        again = refusal(raw, size) if len(raw) < 100_000 else error
        assert (again.reason, again.offset, again.member) == (error.reason, error.offset, error.member)


def test_a_refusal_names_the_member_and_its_place():
    """The error holds the offset of the header and the member's name as the archive spells it."""
    error = refusal(member(b"good", b"abc") + member(b"a/../b") + END)
    assert (error.offset, error.member) == (1024, b"a/../b")
    assert "byte 1024" in str(error)
    assert "a/../b" in str(error)


def test_a_refused_archive_stays_refused():
    """After an error every later call raises it again, and none gives members."""
    reader = TocReader()
    with pytest.raises(TarMalformed) as first:
        reader.feed(member(b"/abs"))
    with pytest.raises(TarMalformed) as second:
        reader.feed(member(b"good"))
    with pytest.raises(TarMalformed) as third:
        reader.close()
    assert first.value is second.value is third.value


def test_mode_keeps_permission_bits_only():
    """Modes are reported as recorded, without the file type that some writers add."""
    found = read(member(b"a", mode=0o104755) + member(b"b", mode=0o6777) + END)
    assert (found[b"a"][2], found[b"b"][2]) == (0o4755, 0o6777)


def test_the_largest_names_are_accepted():
    """A component of 255 bytes and a path of 4096 are within the limits."""
    path = b"/".join([LONG] * 16)
    assert len(path) == 4095
    assert list(read(pax((b"path", path + b"/")) + member(typeflag=b"5") + END)) == [path]


def archive_of(members: list[tuple[str, bytes | None]], form: int) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data or b""))
    return raw.getvalue()


MEMBERS = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1, max_size=120).filter(
            lambda name: len(name.encode()) <= 255
        ),
        st.none() | st.binary(max_size=2000),
    ),
    max_size=6,
    unique_by=lambda member: member[0],
)


@given(MEMBERS, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 3000))
def test_any_pieces_give_the_same_members(members, form, size):
    """Archives of another writer are listed with their data, and no split of the bytes changes anything."""
    raw = archive_of(members, form)
    expected = {name.encode(): (int(data is None), data or b"") for name, data in members}
    for pieces in (size, None):
        assert {path: found[:2] for path, found in read(raw, pieces).items()} == expected


@given(st.binary(max_size=2000), st.integers(1, 600))
def test_any_bytes_give_members_or_a_refusal(raw, size):
    """Random bytes end in TarMalformed, or in members that were really there."""
    for archive in (raw, member(b"f", raw)[:512] + raw):
        try:
            read(archive, size)
        except TarMalformed:
            continue


def mutate(rng: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) or 1)
        block = at // 512 * 512
        field, size = rng.choice(((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (257, 8), (345, 155)))
        value = rng.choice(
            (b"", b"7" * size, b"\xff" * size, b"\x80", b" " * size, b"-1", rng.randbytes(size), b"../x", b"a/")
        )
        match rng.randrange(7):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.choice((1, 10, 512, 1024))]
            case 2:
                changed[at:at] = changed[: rng.choice((512, 1024))]
            case 3 | 4:
                changed[block + field : block + field + size] = value.ljust(size, b"\0")
            case 5:
                del changed[at:]
            case 6:
                changed[block + 156 : block + 157] = rng.choice((b"0", b"\0", b"5", b"x", b"L", b"g", b"S"))
    if rng.random() < 0.9:
        for at in range(0, len(changed) - 511, 512):
            if changed[at + 257 : at + 262] == b"ustar":
                changed[at + 148 : at + 156] = b" " * 8
                changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def test_twenty_thousand_mutated_archives_raise_nothing_else(corpora):
    """Mutants of good and bad archives, most with a mended checksum: members or TarMalformed, never another error."""
    seeds = [path.read_bytes() for path in sorted((corpora / "tar-go").glob("*.tar"))]
    names = [("dir", None), ("dir/f", b"hello"), ("é" * 60, b"y" * 700), ("long/" * 25 + "file", b"z")]
    seeds += [archive_of(names, form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)] * 10
    seeds = [raw for raw in seeds if len(raw) < 100_000]
    rng = random.Random(20_000)
    listed = 0
    for _ in range(20_000):
        raw = mutate(rng, rng.choice(seeds))
        reader = TocReader()
        try:
            reader.feed(raw)
            reader.close()
        except TarMalformed:
            continue
        listed += 1
    assert 1000 < listed < 19_000  # the mutants reach both outcomes


def test_data_inside_a_member_costs_one_view():
    """A piece of 1 MiB in the middle of a member is passed on without a copy, in microseconds."""
    reader = TocReader()
    reader.feed(encode_member_header(b"weights", kind=MemberKind.FILE, size=1 << 40, mode=0o644))
    data = bytes(1 << 20)
    start = time.perf_counter()
    for _ in range(1000):
        (piece,) = reader.feed(data)
        assert piece.data.obj is data
    assert time.perf_counter() - start < 0.5  # 1 GiB: measured 2 ms


def test_member_count_is_bounded():
    """More members than the limit, implied directories counted, are refused."""
    raw = b"".join(member(b"d%d/f" % number) for number in range(10))
    assert len(read(raw, limits=TocLimits(member_count=20))) == 10
    assert "too many members" in str(refusal(raw, limits=TocLimits(member_count=19)))
    assert "too many members" in str(refusal(raw, limits=TocLimits(path_total_size=10)))


def test_deep_paths_do_not_multiply_memory():
    """Paths that each imply 2000 directories hit the limit of all paths before memory grows."""
    raw = b"".join(pax((b"path", b"%d/" % number + b"d/" * 2000 + b"f")) + member() for number in range(40))
    tracemalloc.start()
    try:
        error = refusal(raw, limits=TocLimits(path_total_size=16 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "too many members" in str(error)
    assert peak < 48 << 20
