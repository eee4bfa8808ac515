"""What a commit adds to the store where a split layer changed: the members that changed, and nothing of the others."""

import os
import random

import pytest

from kitfs.digest import Digest
from kitfs.layer.index_blob import get_layer_index
from kitfs.layer.indexer import LayerIndexer
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.oci.reference import parse_reference
from kitfs.store.fsck import check
from kitfs.store.stamp import settle, stamp_of
from kitfs.store.store import Store

RNG = random.Random(23)
FILES = {
    "weights/0.bin": RNG.randbytes(9_000_001),
    "weights/1.bin": RNG.randbytes(2_000_000),
    "weights/2.bin": RNG.randbytes(5_000_000),
    "weights/small.json": RNG.randbytes(70_000),
}


@pytest.fixture
def work(kitfs, tmp_path):
    """A staging directory over ``myllm:1``, whose one layer is split; the store is whole in the end."""
    folder = tmp_path / "folder"
    (folder / "weights").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel:\n  path: weights\n")
    assert kitfs("pack", folder, "-t", "myllm:1", "--progress", "none").code == 0
    with Store.open(tmp_path / "home") as store:
        kit = resolve(store, parse_reference("myllm:1"))
        staging = create_staging(store, tmp_path / "work", kit, overlay="overlay", uid=os.getuid(), gid=os.getgid())
    (staging.upper / "weights").mkdir(exist_ok=True)
    return staging


def members(tmp_path):
    return {path.name: path.stat() for path in (tmp_path / "home/members").glob("*/*/*")}


def commit(kitfs, staging, changed):
    for name, data in changed.items():
        (staging.upper / name).write_bytes(data)
    return kitfs("commit", staging.path, "myllm:2", "--progress", "none")


CHANGES = {
    "same size": {"weights/1.bin": RNG.randbytes(2_000_000)},
    "longer": {"weights/1.bin": RNG.randbytes(2_000_001)},
    "first": {"weights/0.bin": RNG.randbytes(1_200_000), "weights/small.json": b"{}"},
    "added": {"weights/00.bin": RNG.randbytes(1_500_000)},
    "copied": {"weights/3.bin": FILES["weights/2.bin"]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_store_grows_by_changed_members_only(kitfs, tmp_path, work, name):
    """Files of members that stay are the same, inode and times; new are the changed bytes, once each."""
    before = members(tmp_path)
    assert commit(kitfs, work, CHANGES[name]).code == 0
    after = members(tmp_path)
    assert {it.st_ino for it in before.values()} == {after[digest].st_ino for digest in before}
    assert {it.st_ctime_ns for it in before.values()} == {after[digest].st_ctime_ns for digest in before}
    new = {Digest.of(data).hex: len(data) for data in CHANGES[name].values()}
    assert after.keys() == before.keys() | new.keys()
    with Store.open(tmp_path / "home") as store:
        assert check(store, read_data=True).problems == []


@pytest.mark.parametrize("name", CHANGES)
def test_index_of_the_new_layer_is_that_of_its_bytes(kitfs, tmp_path, work, name):
    """What the store records of a layer that was hashed in part is what indexing all of its bytes finds."""
    assert commit(kitfs, work, CHANGES[name]).code == 0
    with Store.open(tmp_path / "home") as store:
        (layer,) = resolve(store, parse_reference("myllm:2")).kits[0].manifest.layers
        indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
        with store.open_content(layer.digest) as content:
            for piece in content.iter_pieces(1 << 20):
                indexer.feed(piece)
        assert get_layer_index(store, layer.digest) == indexer.finish()


def test_rot_of_an_unchanged_member_stops_the_commit(kitfs, tmp_path, work):
    """A bit that flipped below the file system, in a file that is trusted, gets into no new layer: exit 6, no tag."""
    digest = Digest.of(FILES["weights/2.bin"])
    with Store.open(tmp_path / "home") as store:
        path = store.layout.member(digest)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(3_000_000)
            file.write(bytes([FILES["weights/2.bin"][3_000_000] ^ 4]))
        stamp = stamp_of(path.stat())
        settle(stamp)
        with store.lease("as rot leaves it") as lease:
            change = store.change(lease)
            change.add_member(digest, len(FILES["weights/2.bin"]), stamp)
            change.commit()
        assert store.is_member_trusted(digest)
    done = commit(kitfs, work, CHANGES["longer"])
    assert done.code == 6 and "checksum differs" in done.err
    assert kitfs("inspect", "myllm:2").code == 3
    assert not [*(tmp_path / "home/ingest").iterdir()]
