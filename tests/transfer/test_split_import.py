"""Plain tar layers that an import copies are split: how they lie, what damage does to them, and what heals it."""

import random

import pytest

from kitfs.digest import Digest, DigestMismatch
from kitfs.layer.errors import LayerCorrupt, LayerMalformed
from kitfs.layer.reader import LayerReader
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.repair import repair
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

TAR = "application/vnd.kitops.modelkit.model.v1.tar"
RNG = random.Random(7)
SHARED = RNG.randbytes((1 << 20) + 5)
OTHER = RNG.randbytes(300_000)
FILES = {"model/a.bin": SHARED, "model/b.bin": OTHER, "model/empty": b"", "model/twin": OTHER}


@pytest.fixture
def kit(layout, make_tar):
    """A layout with one ModelKit, and its layer's bytes."""
    raw = make_tar(FILES)
    layout.kit("1", [(TAR, raw)])
    return layout.path, raw


@pytest.fixture
def hurt(tmp_path):
    """A store that a test may leave damaged."""
    with Store.open(tmp_path / "hurt") as store:
        yield store


def bring_into(store, path, *, copy=True):
    source = open_source(path)
    try:
        return import_source(store, source, copy=copy)
    finally:
        source.close()


def joined(store, digest):
    with store.open_content(digest) as content:
        return b"".join(content.iter_pieces())


def rewrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


def read_all(store, layer):
    """Each file of a layer as a mount reads it."""
    with LayerReader(store, layer) as reader:
        return {
            member.path.decode(): bytes(reader.open_member(at).read(0, member.size))
            for at, member in enumerate(reader.toc)
        }


def test_copied_layer_is_split_and_reads_as_before(bring, store, kit):
    """A plain tar that is copied has no file of its own, gives its bytes back, and its files read the same."""
    path, raw = kit
    report = bring(path, copy=True)
    layer = Digest.of(raw)
    assert report.counts.size_copied >= len(raw)
    assert store.get_blob(layer).form == "split"
    assert not store.layout.blob(layer).exists()
    assert joined(store, layer) == raw
    assert read_all(store, layer) == FILES
    with LayerReader(store, layer) as reader:
        assert {reader.open_member(at).state for at in range(len(reader.toc))} == {"native"}


def test_linked_layer_stays_linked(bring, store, kit):
    """An import that may link makes no second copy of kit's file."""
    path, raw = kit
    bring(path)
    assert store.get_blob(Digest.of(raw)).form == "linked"
    assert list(store.layout.content("recipes").glob("*/*")) == []
    bring(path, copy=True)
    assert store.get_blob(Digest.of(raw)).form == "linked"


def test_small_members_stay_in_a_whole_blob(bring, store, layout, make_tar):
    """A layer of small files is one file, as an fsync for each of them would cost more than it saves."""
    raw = make_tar({str(number): b"x" * 1000 for number in range(20)})
    layout.kit("1", [(TAR, raw)])
    bring(layout.path, copy=True)
    assert store.get_blob(Digest.of(raw)).form == "whole"


def test_compressed_and_raw_layers_stay_whole(bring, store, layout, make_tar, packers):
    """Only plain tars are split: a gzip stream can not be made again from its tar."""
    zipped = packers["+gzip"](make_tar(FILES))
    layout.kit("1", [(TAR + "+gzip", zipped), (TAR.replace(".tar", ".raw"), SHARED)])
    bring(layout.path, copy=True)
    assert {store.get_blob(Digest.of(data)).form for data in (zipped, SHARED)} == {"whole"}


@pytest.mark.parametrize("at", [100, 600, 5000, -1])
def test_damaged_source_leaves_nothing(bring, store, kit, is_empty, at):
    """A copied layer whose bytes are others is a digest mismatch, wherever they differ, and nothing of it stays."""
    path, raw = kit
    blob = path / "blobs/sha256" / Digest.of(raw).hex
    data = bytearray(raw)
    data[at] ^= 1
    blob.write_bytes(data)
    report = bring(path, copy=True)
    assert [type(error) for _, error in report.failures] == [DigestMismatch]
    assert is_empty(store)


def test_malformed_tar_is_still_named(bring, store, layout, make_tar, is_empty):
    """A tar that ends inside a member is refused as malformed, split or not."""
    layout.kit("1", [(TAR, make_tar(FILES)[:400_000])])
    report = bring(layout.path, copy=True)
    assert [type(error) for _, error in report.failures] == [LayerMalformed]
    assert is_empty(store)


def test_gc_keeps_what_another_kit_shares(bring, store, layout, make_tar):
    """Members go with the last layer that has them, and pins with the blob that set them."""
    first, second = make_tar(FILES), make_tar({"x": SHARED, "y": RNG.randbytes(100_000)})
    layout.kit("1", [(TAR, first)])
    layout.kit("2", [(TAR, second)])
    bring(layout.path, copy=True)
    assert len(store.find_member(Digest.of(SHARED)).pins) == 2
    with store.lease("x") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/made", "1")
        change.commit()
    assert any(victim.name == str(Digest.of(OTHER)) for victim in gc(store, dry_run=True).victims)
    report = gc(store)
    assert {victim.kind for victim in report.victims} == {"ModelKit", "blob", "member"}
    assert store.find_member(Digest.of(OTHER)) is None
    assert not store.layout.recipe(Digest.of(first)).exists()
    assert store.find_member(Digest.of(SHARED)).pins == [Digest.of(second)]
    assert joined(store, Digest.of(second)) == second
    with store.lease("x") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/made", "2")
        change.commit()
    gc(store)
    assert list(store.home.glob("*/sha256/*/*")) == []


def test_member_that_another_layer_has_becomes_ordinary(bring, store, layout, make_tar, packers):
    """When the split layer goes, a member that a gzip layer has too stays without a pin."""
    layout.kit("1", [(TAR, make_tar(FILES))])
    layout.kit("2", [(TAR + "+gzip", packers["+gzip"](make_tar({"x": SHARED})))])
    bring(layout.path, copy=True)
    with store.lease("x") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/made", "1")
        change.commit()
    gc(store)
    assert store.find_member(Digest.of(SHARED)).pins == []


DAMAGES = {
    "recipe flipped": lambda store, layer: rewrite(store.layout.recipe(layer), b"KITFSRCP" + bytes(300)),
    "recipe gone": lambda store, layer: store.layout.recipe(layer).unlink(),
    "member flipped": lambda store, layer: rewrite(store.layout.member(Digest.of(OTHER)), b"\1" + OTHER[1:]),
    "member short": lambda store, layer: rewrite(store.layout.member(Digest.of(OTHER)), OTHER[:-1]),
    "member gone": lambda store, layer: store.layout.member(Digest.of(OTHER)).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("repairs", [False, True])
def test_import_again_heals_a_split_layer(hurt, kit, damage, copy, repairs):
    """Damage to recipe or member is named as lost, survives a repair, and another import puts it right (I7)."""
    path, raw = kit
    layer = Digest.of(raw)
    bring_into(hurt, path)
    DAMAGES[damage](hurt, layer)
    assert check(hurt, read_data=True).exit_code == 6
    if repairs:
        assert repair(hurt, read_data=True).exit_code == 6
        assert check(hurt, read_data=True).exit_code == 6
    with LayerReader(hurt, layer) as reader:
        good = reader.open_member(0)
        assert bytes(good.read(0, good.size)) == SHARED
        bad = reader.open_member(1)
        if damage.startswith("member"):
            with pytest.raises(LayerCorrupt):
                bad.read(0, bad.size)
        bring_into(hurt, path, copy=copy)
        assert bytes(bad.read(0, bad.size)) == OTHER
    assert hurt.get_blob(layer).form == "split"
    assert joined(hurt, layer) == raw
    assert read_all(hurt, layer) == FILES
    assert check(hurt, read_data=True).problems == []


def test_rot_below_the_file_system_is_found_by_reading(hurt, kit):
    """A member that changed under its stamp is found by --read-data alone, and no longer trusted after a repair."""
    import os

    path, raw = kit
    bring_into(hurt, path)
    member = hurt.layout.member(Digest.of(OTHER))
    rewrite(member, b"\1" + OTHER[1:])
    status = member.stat()
    record = hurt.find_member(Digest.of(OTHER))
    with hurt.index.write() as txn:
        import msgspec

        from kitfs.store import schema
        from kitfs.store.stamp import stamp_of

        txn.put(schema.MEMBERS, Digest.of(OTHER).raw, msgspec.structs.replace(record, stamp=stamp_of(os.stat(member))))
    assert status.st_size == len(OTHER)
    assert check(hurt).problems == []
    damages = {finding.damage for finding in check(hurt, read_data=True).problems}
    assert damages == {"corrupt-recipe", "wrong-member-digest"}
    repair(hurt, read_data=True)
    with LayerReader(hurt, Digest.of(raw)) as reader:
        bad = reader.open_member(1)
        with pytest.raises(LayerCorrupt):
            bad.read(0, 10)
        assert bytes(bad.read(200_000, 200_010)) == OTHER[200_000:200_010]


def test_touched_member_is_trusted_again(bring, store, kit):
    """A member whose status changed and whose bytes did not is hashed once, then served from its file again."""
    path, raw = kit
    bring(path, copy=True)
    store.layout.member(Digest.of(SHARED)).chmod(0o400)
    with LayerReader(store, Digest.of(raw)) as reader:
        opened = reader.open_member(0)
        assert opened.state == "lazy"
        assert bytes(opened.read(5, 1000)) == SHARED[5:1000]
        assert opened.state == reader.open_member(0).state == "native"


def test_wrong_pins_are_found_and_repaired(hurt, kit):
    """Pins that were lost or made up, and members that lost their record, follow from the recipes after a repair."""
    import msgspec

    from kitfs.store import schema

    path, raw = kit
    bring_into(hurt, path)
    with hurt.index.write() as txn:
        record = hurt.find_member(Digest.of(SHARED))
        txn.put(schema.MEMBERS, Digest.of(SHARED).raw, msgspec.structs.replace(record, pins=[Digest.of(b"?")]))
        txn.delete(schema.MEMBERS, Digest.of(OTHER).raw)
    assert {finding.damage for finding in check(hurt).problems} == {"wrong-pins", "unrecorded-member"}
    assert repair(hurt).exit_code == 1
    assert check(hurt, read_data=True).problems == []
    for data in (SHARED, OTHER):
        assert hurt.find_member(Digest.of(data)).pins == [Digest.of(raw)]


def test_lost_index_finds_split_blobs_again(hurt, kit):
    """A blob's record made anew from the files says that it is split, and its members are pinned."""
    from kitfs.store import schema

    path, raw = kit
    bring_into(hurt, path)
    with hurt.index.write() as txn:
        txn.delete(schema.BLOBS, Digest.of(raw).raw)
        for data in (SHARED, OTHER):
            txn.delete(schema.MEMBERS, Digest.of(data).raw)
    assert check(hurt).problems
    repair(hurt)
    assert hurt.get_blob(Digest.of(raw)).form == "split"
    assert hurt.find_member(Digest.of(SHARED)).pins == [Digest.of(raw)]
    assert check(hurt, read_data=True).problems == []


def test_blob_in_both_forms_keeps_the_recorded_one(bring, store, kit):
    """Two imports that stored a blob in two ways leave one file too many, which GC takes, and the reads go on."""
    path, raw = kit
    bring(path, copy=True)
    layer = Digest.of(raw)
    with store.lease("other") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(raw)
            ingest.commit_blob()
        change = store.change(lease)
        change.add_blob(layer, len(raw))
        change.commit()
    assert store.get_blob(layer).form == "whole"
    assert store.find_member(Digest.of(SHARED)).pins == []
    assert [victim.name for victim in gc(store).victims] == [str(layer)]
    assert not store.layout.recipe(layer).exists()
    assert read_all(store, layer) == FILES
