"""Split blobs: a plain tar as a recipe and members, and back."""

import io
import os
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.archive.tar_toc import TarMalformed
from kitfs.digest import Digest, DigestMismatch
from kitfs.layer.indexer import LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store import recipe as recipes
from kitfs.store.errors import BlobCorrupt, BlobIsSplit, BlobNotFound, SizeMismatch
from kitfs.store.fsck import check
from kitfs.store.recipe import RecipeMember, encode_recipe, parse_recipe
from kitfs.store.split_ingest import ENTRIES_MAX, is_worth_splitting
from kitfs.store.store import Store

RNG = random.Random(3)
BIG = RNG.randbytes((1 << 20) + 777)
MIDDLE = RNG.randbytes(70_000)


def make_tar(files, form=tarfile.PAX_FORMAT):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return raw.getvalue()


def split(store, raw, *, pieces=1 << 20, expected=None):
    """Store a tar split, recorded; its digest."""
    with store.lease("split") as lease, store.split_ingest(lease) as ingest:
        indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE, hashes_blob=False)
        for at in range(0, len(raw), pieces):
            ingest.write(raw[at : at + pieces])
            indexer.feed(raw[at : at + pieces])
        index = indexer.finish(ingest.digest())
        digest = ingest.commit(index.toc, expected, len(raw))
        change = store.change(lease)
        change.add_blob(digest, len(raw))
        change.add_layer(digest, index.record, index.toc, index.span_checksums)
        change.commit()
    return digest


def joined(store, digest, size=1 << 20):
    with store.open_content(digest) as content:
        return b"".join(content.iter_pieces(size))


TARS = {
    "one": make_tar({"model.bin": MIDDLE}),
    "large": make_tar({"model/a.bin": BIG, "model/b.bin": MIDDLE}),
    "pax names": make_tar({"d" * 90 + "/" + "n" * 200: MIDDLE, "naïve/ü" * 20: b"x"}),
    "gnu names": make_tar({"d" * 90 + "/" + "n" * 200: MIDDLE}, tarfile.GNU_FORMAT),
    "empty files": make_tar({"a": b"", "b": MIDDLE, "c": b"", "dir": None, "d": b""}),
    "twins": make_tar({"a": BIG, "b": BIG, "c": MIDDLE, "d": MIDDLE}),
    "block sizes": make_tar({str(size): RNG.randbytes(size) for size in (1, 511, 512, 513, 1024)}),
    "long end": make_tar({"a": MIDDLE}) + bytes(1 << 20),
    "odd end": make_tar({"a": MIDDLE}) + bytes(333),
    "short end": make_tar({"a": MIDDLE})[: 512 + -(-len(MIDDLE) // 512) * 512 + 1024],
    "no end": make_tar({"a": MIDDLE})[: 512 + -(-len(MIDDLE) // 512) * 512],
    "bytes after the end": make_tar({"a": MIDDLE}) + RNG.randbytes(3000),
}


@pytest.mark.parametrize("name", TARS)
@pytest.mark.parametrize("pieces", [1 << 20, 1000])
def test_split_blob_gives_its_bytes_back(store, name, pieces):
    """A plain tar of any shape that is accepted comes back exactly, whatever the pieces it was written in."""
    raw = TARS[name]
    digest = split(store, raw, pieces=pieces)
    assert digest == Digest.of(raw)
    assert joined(store, digest) == raw
    assert store.get_blob(digest).form == "split"
    assert not store.layout.blob(digest).exists()
    with pytest.raises(BlobIsSplit):
        store.open_blob(digest)


def test_kits_plain_layers_come_back(store, shared_fixtures):
    """Each plain tar that another program packed is the same when it is split and put together."""
    seen = 0
    for path in sorted(shared_fixtures.glob("*/storage/**/blobs/sha256/*")):
        raw = path.read_bytes()
        if raw[257:262] == b"ustar" and any(raw[:512]):
            assert joined(store, split(store, raw)) == raw
            seen += 1
    assert seen > 5


@given(st.data())
def test_ranges_are_those_of_the_blob(tmp_path_factory, data):
    """Any range of a split blob has the bytes of the same range of the tar."""
    raw = TARS["twins"]
    with Store.open(tmp_path_factory.getbasetemp() / "ranges") as store:
        digest = Digest.of(raw)
        if store.find_blob(digest) is None:
            split(store, raw)
        with store.open_content(digest) as content:
            for _ in range(20):
                start = data.draw(st.integers(0, len(raw)))
                size = data.draw(st.sampled_from([0, 1, 511, 512, 4096, len(raw)]))
                assert content.read(start, size) == raw[start : start + size]


def test_shared_members_are_on_disk_once(store):
    """Two layers with a member in common take its blocks once."""
    split(store, make_tar({"a": BIG, "b": MIDDLE}))

    def blocks():
        return sum(path.stat().st_blocks * 512 for path in store.home.glob("*/sha256/*/*"))

    before = blocks()
    other = split(store, make_tar({"x/a": BIG, "x/b": b"small"}))
    assert blocks() - before < 64 << 10
    record = store.find_member(Digest.of(BIG))
    assert len(record.pins) == 2 and other in record.pins


def test_wrong_digest_leaves_nothing(store):
    """A tar that is not the one that was announced leaves no file and no record."""
    with pytest.raises(DigestMismatch):
        split(store, TARS["large"], expected=Digest.of(b"other"))
    with store.lease("x") as lease, store.split_ingest(lease) as ingest:
        ingest.write(TARS["large"])
        with pytest.raises(SizeMismatch):
            ingest.commit([], size=5)
    for kind in ("blobs", "recipes", "members"):
        assert list(store.layout.content(kind).glob("*/*")) == []
    assert list(store.layout.ingest.iterdir()) == []


def test_malformed_tar_is_refused_at_the_commit(store):
    """What is no tar is hashed to its end, so that wrong bytes are told from a malformed layer, and then refused."""
    with store.lease("x") as lease, store.split_ingest(lease) as ingest:
        ingest.write(b"no tar" * 1000)
        assert ingest.digest() == Digest.of(b"no tar" * 1000)
        with pytest.raises(TarMalformed):
            ingest.commit([])
    assert list(store.layout.ingest.iterdir()) == []


def test_blob_that_is_there_whole_stays_whole(store, build):
    """Splitting a blob that the store keeps whole and right leaves it as it is."""
    raw = TARS["large"]
    build.kit(layers=(raw,))
    with store.lease("again") as lease, store.split_ingest(lease) as ingest:
        indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
        indexer.feed(raw)
        ingest.write(raw)
        ingest.commit(indexer.finish().toc)
        assert lease.holds(Digest.of(raw))
    assert list(store.layout.content("recipes").glob("*/*")) == []
    assert list(store.layout.content("members").glob("*/*")) == []


def test_second_split_writes_nothing(store):
    """Splitting again what is there keeps every file, its inode included."""
    digest = split(store, TARS["twins"])
    files = {path: path.stat().st_ino for path in store.home.glob("*/sha256/*/*")}
    assert split(store, TARS["twins"], pieces=4096) == digest
    assert {path: path.stat().st_ino for path in store.home.glob("*/sha256/*/*")} == files


def test_files_of_a_split_blob_are_read_only(store):
    """Recipe and members have mode 0444, as blobs have."""
    split(store, TARS["twins"])
    assert {path.stat().st_mode & 0o777 for path in store.home.glob("*/sha256/*/*")} == {0o444}


@pytest.mark.parametrize("at", [0, 8, 12, 44, 52, 60, 72, 90, -20, -1])
def test_flipped_bit_of_a_recipe_is_noticed(at):
    """No bit of a recipe can change without an error that names the blob."""
    digest = Digest.of(b"blob")
    raw = bytearray(encode_recipe(digest, 1100, [RecipeMember(512, 76, Digest.of(b"m"))], bytes(1024)))
    assert parse_recipe(bytes(raw), digest).unpack_rest() == bytes(1024)
    raw[at] ^= 1
    with pytest.raises(BlobCorrupt):
        parse_recipe(bytes(raw), digest)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [RecipeMember(0, 0, Digest.of(b""))],
        [RecipeMember(10, 50, Digest.of(b"a")), RecipeMember(30, 26, Digest.of(b"b"))],
        [RecipeMember(50, 26, Digest.of(b"a")), RecipeMember(0, 50, Digest.of(b"b"))],
        [RecipeMember(1090, 76, Digest.of(b"a"))],
        [RecipeMember(512, 77, Digest.of(b"a"))],
    ],
)
def test_recipe_that_contradicts_itself_is_refused(members):
    """Members that overlap, leave the blob, or do not add up to it are corruption, checksum or not."""
    digest = Digest.of(b"blob")
    with pytest.raises(BlobCorrupt):
        parse_recipe(encode_recipe(digest, 1100, members, bytes(1024)), digest)


def test_recipe_of_another_blob_is_refused(store):
    """A recipe under another blob's name is corruption; a name without a file is no blob."""
    digest = split(store, TARS["one"])
    raw = store.layout.recipe(digest).read_bytes()
    with pytest.raises(BlobCorrupt):
        parse_recipe(raw, Digest.of(b"other"))
    with pytest.raises(BlobNotFound):
        store.open_content(Digest.of(b"other"))


def test_recipe_reads_within_bounds(monkeypatch, damaged):
    """A file that claims more than a recipe may hold is refused before it is decoded."""
    digest = split(damaged, TARS["long end"])
    monkeypatch.setattr(recipes, "REST_SIZE_MAX", 1 << 19)
    with pytest.raises(BlobCorrupt, match="limits"):
        damaged.open_content(digest)
    monkeypatch.setattr(recipes, "REST_SIZE_MAX", 64 << 20)
    monkeypatch.setattr(recipes, "_FILE_SIZE_MAX", 100)
    with pytest.raises(BlobCorrupt, match="too large"):
        damaged.open_content(digest)


def test_many_small_files_stay_together():
    """A layer of many or small members is not split, nor one whose bytes are mostly no member's."""
    assert is_worth_splitting(4, 1 << 30, (1 << 30) + 4096)
    assert not is_worth_splitting(0, 0, 1024)
    assert not is_worth_splitting(1000, 1000 * 60_000, 1000 * 61_000)
    assert not is_worth_splitting(ENTRIES_MAX + 1, 1 << 40, 1 << 40)
    assert not is_worth_splitting(1, 1 << 20, 1 << 30)


def test_pinned_member_is_not_dropped_by_a_restamp(damaged):
    """A member of a split blob whose bytes turn wrong stays, noted as damaged; right bytes make it native again."""
    split(damaged, TARS["large"])
    member = Digest.of(MIDDLE)
    path = damaged.layout.member(member)
    os.chmod(path, 0o644)
    path.write_bytes(bytes(len(MIDDLE)))
    assert not damaged.restamp_member(member)
    assert path.exists()
    record = damaged.find_member(member)
    assert record.state == "damaged" and record.stamp is None and record.pins
    assert {finding.damage for finding in check(damaged).problems} == {"damaged-member"}
    path.write_bytes(MIDDLE)
    assert damaged.restamp_member(member)
    assert damaged.find_member(member).state == "native"
    assert not check(damaged, read_data=True).problems


def test_materialised_twin_keeps_the_pins(store):
    """Recording a member again, as reading a gzip layer does, takes no pin away."""
    digest = split(store, TARS["one"])
    with store.lease("member") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(MIDDLE)
            ingest.commit_member()
        change = store.change(lease)
        change.add_member(Digest.of(MIDDLE), len(MIDDLE))
        change.commit()
    assert store.find_member(Digest.of(MIDDLE)).pins == [digest]


def test_store_without_recipes_gets_the_folders(store_home):
    """A store of the same format that an earlier program made is opened, and takes split blobs."""
    Store.open(store_home).close()
    for path in sorted((store_home / "recipes").rglob("*"), reverse=True):
        path.rmdir()
    (store_home / "recipes").rmdir()
    with Store.open(store_home, create=False) as store:
        digest = split(store, TARS["one"])
        assert joined(store, digest) == TARS["one"]
        assert not check(store, read_data=True).problems


def test_small_split_blob_can_be_read_verified(store):
    """``read_blob`` verifies a split blob as any other."""
    digest = split(store, TARS["one"])
    assert store.read_blob(digest) == TARS["one"]


def test_many_members_of_every_size(store):
    """More members than are open at once, large ones and twins among them, come back, and few files stay open."""
    rng = random.Random(11)
    large = [rng.randbytes((1 << 20) + number) for number in range(3)]
    files = {f"{number:03}": rng.randbytes(1000 + number) for number in range(150)}
    files |= {f"large/{number:03}": large[number % 3] for number in range(75)}
    raw = make_tar(files)
    before = len(os.listdir("/proc/self/fd"))
    digest = split(store, raw)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert joined(store, digest) == raw
    assert len(list(store.layout.content("members").glob("*/*"))) == 153
    assert list(store.layout.ingest.iterdir()) == []
