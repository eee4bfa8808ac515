"""Members that go into a new split layer unchanged: hashed as the layer's, not written."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.digest import Digest, DigestMismatch
from kitfs.layer.indexer import LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store

RNG = random.Random(13)
BIG = RNG.randbytes((1 << 20) + 5)
OTHER = RNG.randbytes((1 << 20) + 513)
SMALL = RNG.randbytes(70_000)


def header(name, data):
    return encode_member_header(name.encode(), kind=MemberKind.FILE, size=len(data), mode=0o644)


def plain(files):
    """The tar, as it is written without adopting anything."""
    return b"".join(header(name, data) + data + padding(len(data)) for name, data in files.items()) + END_OF_ARCHIVE


def write(store, lease, files, adopted=(), *, pieces=1 << 20, at_member=lambda: None):
    """Write a tar, some members of it adopted; its digest, and which of them were."""
    taken = set()
    with store.split_ingest(lease) as ingest:
        indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE, hashes_blob=False)

        def put(data):
            for at in range(0, len(data), pieces):
                ingest.write(data[at : at + pieces])
                indexer.feed(data[at : at + pieces])

        for name, data in files.items():
            put(header(name, data))
            if name in adopted and ingest.adopt(adopted[name]):
                taken.add(name)
            put(data)
            at_member()
            put(padding(len(data)))
        put(END_OF_ARCHIVE)
        index = indexer.finish(ingest.digest())
        ingest.commit(index.toc, size=index.size)
    change = store.change(lease)
    change.add_blob(index.digest, index.size)
    change.add_layer(index.digest, index.record, index.toc, index.span_checksums, index.checkpoints)
    change.commit()
    return index.digest, taken


def split(store, files, adopted=(), **options):
    with store.lease("split") as lease:
        return write(store, lease, files, adopted, **options)


def digests(files):
    return {name: Digest.of(data) for name, data in files.items()}


def member_files(store):
    return {path: path.stat() for path in store.layout.content("members").glob("*/*")}


def read(store, digest):
    with store.open_content(digest) as content:
        return b"".join(content.iter_pieces(1 << 20))


PARENT = {"a": BIG, "b": OTHER, "c": SMALL}


def test_adopted_members_are_not_written(store):
    """Only what changed is written, not for a moment more; the digest is that of the plain tar, old files untouched."""
    split(store, PARENT)
    before = member_files(store)
    changed = {"a": BIG, "b": RNG.randbytes(len(OTHER)), "c": SMALL}
    written = []

    def look():
        written.append(sum(path.stat().st_size for path in store.layout.ingest.iterdir()))

    unchanged = {"a": Digest.of(BIG), "c": Digest.of(SMALL)}
    digest, taken = split(store, changed, unchanged, at_member=look)
    assert taken == {"a", "c"}
    assert written == [0, len(OTHER), len(OTHER)]
    assert digest == Digest.of(plain(changed))
    assert read(store, digest) == plain(changed)
    after = member_files(store)
    new = store.layout.member(Digest.of(changed["b"]))
    assert after.keys() - before.keys() == {new}
    assert all(
        (after[path].st_ino, after[path].st_ctime_ns) == (it.st_ino, it.st_ctime_ns) for path, it in before.items()
    )
    assert {digest} < set(store.find_member(Digest.of(BIG)).pins)


@given(st.data())
def test_any_members_adopted_give_the_same_blob(tmp_path_factory, data):
    """Whichever members are adopted, twins and empty ones among them, in pieces of any size: the blob is the same."""
    with Store.open(tmp_path_factory.getbasetemp() / "adopts") as store:
        split(store, PARENT)
        bodies = st.sampled_from([BIG, OTHER, SMALL, b"", b"new", OTHER[:-1]])
        names = st.sampled_from(["a", "b", "c", "d", "dir/e"])
        files = dict(sorted(({"ab": SMALL} | data.draw(st.dictionaries(names, bodies))).items()))
        chosen = data.draw(st.sets(st.sampled_from(sorted(files))))
        adopted = {name: Digest.of(files[name]) for name in chosen if files[name]}
        digest, _ = split(store, files, adopted, pieces=data.draw(st.sampled_from([65_537, 1 << 20, 1 << 25])))
        assert digest == Digest.of(plain(files))
        assert read(store, digest) == plain(files)


@pytest.mark.parametrize("how", ["gone", "touched", "wrong"])
def test_member_whose_stamp_does_not_hold_is_written(damaged, how):
    """A member file that is gone, was touched or holds other bytes is not relied upon: the bytes are written anew."""
    split(damaged, PARENT)
    path = damaged.layout.member(Digest.of(BIG))
    if how == "gone":
        path.unlink()
    elif how == "touched":
        os.utime(path)
    else:
        path.chmod(0o644)
        path.write_bytes(bytes(len(BIG)))
    changed = {**PARENT, "c": b"new"}
    digest, taken = split(damaged, changed, {"a": Digest.of(BIG), "b": Digest.of(OTHER)})
    assert taken == {"b"}
    assert digest == Digest.of(plain(changed))
    assert path.read_bytes() == BIG
    assert not check(damaged, read_data=True).problems


@pytest.mark.parametrize("name", ["a", "b"])
def test_bytes_of_another_member_are_refused(store, name):
    """Who adopts a member and gives other bytes gets an error, and no blob."""
    split(store, PARENT)
    recipes = set(store.layout.content("recipes").glob("*/*"))
    with pytest.raises(DigestMismatch):
        split(store, {**PARENT, name: RNG.randbytes(len(PARENT[name]))}, {name: Digest.of(PARENT[name])})
    assert set(store.layout.content("recipes").glob("*/*")) == recipes
    assert list(store.layout.ingest.iterdir()) == []


def test_collector_beside_it_takes_no_adopted_member(store):
    """Members of a layer that nothing keeps any more are kept from the moment in which they are adopted."""
    split(store, PARENT)
    changed = {**PARENT, "c": b"new"}
    runs = []

    def collect_all():
        runs.append(gc(store))

    digest, taken = split(store, changed, {"a": Digest.of(BIG)}, at_member=collect_all)
    assert taken == {"a"} and len(runs) == 3
    assert read(store, digest) == plain(changed)
