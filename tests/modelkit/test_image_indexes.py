"""Image indexes of packed ModelKits: bound by their descriptors, kept as long as these, made anew when damaged."""

import json
import shutil

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.layer.image_index import encode_image_index, parse_image_index
from kitfs.layer.index_blob import get_layer_index
from kitfs.layer.verify import REPAIR_DATA
from kitfs.modelkit.image_indexes import repair, restore_indexes
from kitfs.modelkit.pack import pack
from kitfs.modelkit.pack_options import PackCompression, PackOptions
from kitfs.modelkit.rebuild import rebuild_index
from kitfs.modelkit.verify import PACK_AGAIN, verify
from kitfs.oci.manifest import ANNOTATION_INDEX, parse_manifest
from kitfs.oci.mediatype import LAYER_INDEX
from kitfs.oci.reference import parse_reference
from kitfs.store import schema
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import ManifestRecord
from kitfs.store.store import Store

MINE = parse_reference("mine:1")


@pytest.fixture
def context(tmp_path):
    """A folder of a model in a folder, with documents in it that are a layer of their own."""
    folder = tmp_path / "context"
    for name, data in {"w/a": bytes(range(256)) * 2000, "w/b": b"b", "docs/readme": b"read me"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    kitfile = {"manifestVersion": "1.0.0", "model": {"name": "m", "path": "w"}, "docs": [{"path": "docs"}]}
    (folder / "Kitfile").write_text(json.dumps(kitfile))
    return folder


@pytest.fixture
def store(store_home):
    with Store.open(store_home) as store:
        yield store
        assert check(store, read_data=True).problems == []


PLAIN = PackOptions()


def pack_once(store, context, *references, options=PLAIN):
    return pack(store, context, None, list(references or (MINE,)), options=options, created_s=1_700_000_000)


def bound(store, kit):
    """(layer, image index) as the descriptors of a ModelKit say."""
    layers = parse_manifest(store.read_blob(kit)).layers
    return [(layer.digest, Digest.parse(layer.annotations[ANNOTATION_INDEX])) for layer in layers]


def untag(store):
    with store.lease("untag") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/mine", "1")
        change.commit()


def test_each_layer_is_bound_to_its_index(store, context):
    """The descriptor of each layer names a blob that is the layer's image index, and the manifest's record has it."""
    kit = pack_once(store, context)
    pairs = bound(store, kit)
    assert len(pairs) == 2
    assert store.get_manifest(kit).indexes == [index for _, index in pairs]
    for layer, index in pairs:
        raw = store.read_blob(index)
        assert parse_image_index(raw).digest == layer
        assert raw == encode_image_index(get_layer_index(store, layer))
        assert store.get_blob(index).media_types == [LAYER_INDEX]


@pytest.mark.parametrize("model_pack", [False, True])
@pytest.mark.parametrize("compression", list(PackCompression))
def test_the_same_folder_gives_the_same_kit_in_any_store(store, context, tmp_path, compression, model_pack):
    """Packed again, with layers that are there, or into another store, the ModelKitID is the same."""
    options = PackOptions(compression=compression, model_pack=model_pack)
    kit = pack_once(store, context, options=options)
    assert len(bound(store, kit)) == 2
    assert pack_once(store, context, options=options) == kit
    with Store.open(tmp_path / "other") as other:
        assert pack_once(other, context, options=options) == kit


def test_gc_keeps_an_index_while_a_kit_names_it(store, context):
    """Image indexes stay with the ModelKit that names them, by a tag or a lease, and go when it goes."""
    kit = pack_once(store, context)
    indexes = {index for _, index in bound(store, kit)}
    gc(store)
    assert indexes <= {digest for digest, _ in store.iter_blobs()}
    untag(store)
    with store.lease("look") as lease:
        lease.hold(kit)
        gc(store)
        assert indexes <= {digest for digest, _ in store.iter_blobs()}
    gc(store)
    assert list(store.iter_blobs()) == []
    assert not any(store.layout.blob(index).exists() for index in indexes)


def test_an_index_of_two_kits_stays_with_the_other(store, context):
    """A layer and its image index that two ModelKits share stay until both are gone."""
    pack_once(store, context)
    (context / "docs/readme").write_bytes(b"changed")
    second = pack_once(store, context, parse_reference("mine:2"))
    untag(store)
    gc(store)
    assert all(store.find_blob(index) for _, index in bound(store, second))
    assert len(store.get_manifest(second).indexes) == 2


def damage_file(store, index):
    path = store.layout.blob(index)
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert path.stat().st_size == status.st_size


def delete_record(store, index):
    with store.index.write() as txn:
        txn.delete(schema.BLOBS, index.raw)


def forget(store, index):
    for kit, record in list(store.iter_manifests()):
        with store.lease("forget") as lease:
            change = store.change(lease)
            kept = [other for other in record.indexes if other != index]
            change.add_manifest(kit, msgspec.structs.replace(record, indexes=kept))
            change.commit()
    gc(store)
    assert store.find_blob(index) is None


DAMAGE = {
    "missing-blob": lambda store, index: store.layout.blob(index).unlink(),
    "wrong-size": lambda store, index: (
        store.layout.blob(index).chmod(0o644),
        store.layout.blob(index).write_bytes(b"short"),
    ),
    "wrong-digest": damage_file,
    "incomplete-manifest": delete_record,
    "missing-index": forget,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_repaired(store, context, damage):
    """A missing, cut, corrupt or unrecorded image index is named, no loss, and made anew of its layer by a repair."""
    kit = pack_once(store, context)
    layer, index = bound(store, kit)[0]
    expected = store.read_blob(index)
    DAMAGE[damage](store, index)
    found = [(finding.damage, finding.weight.value) for finding in check(store, read_data=True).problems]
    if damage == "missing-index":
        assert found == []
    else:
        assert (damage, "repairable") in found and "lost" not in dict(found).values()
    report = repair(store, read_data=True)
    assert report.exit_code == 1, report
    assert {finding.name for finding in report.repaired} & {str(index), str(kit)}
    assert store.read_blob(index) == expected
    assert sorted(store.get_manifest(kit).indexes) == sorted(index for _, index in bound(store, kit))
    gc(store)
    assert repair(store, read_data=True).exit_code == 0
    assert bound(store, kit)[0] == (layer, index)


def test_a_repair_does_not_name_what_the_layer_does_not_give(store, context):
    """Without its layer an image index can not be made: the loss of the layer is named, and nothing is invented."""
    kit = pack_once(store, context)
    layer, index = bound(store, kit)[1]
    raw = store.read_blob(layer)
    store.layout.blob(index).unlink()
    path = store.layout.blob(layer)
    path.chmod(0o644)
    path.write_bytes(raw[:-1] + b"x")
    report = repair(store, read_data=True)
    assert report.exit_code == 6
    assert index not in store.get_manifest(kit).indexes and store.find_blob(index) is None
    assert restore_indexes(store) == []
    assert pack_once(store, context) == kit  # brings both back
    assert store.find_blob(index)


@pytest.mark.parametrize("way", ["whole", "missing", "corrupt"])
def test_a_rebuilt_index_has_them_again(context, store_home, silent, dump, way):
    """With the index lost, ModelKits have their image indexes again, whatever became of the files of these."""
    with Store.open(store_home) as store:
        kit = pack_once(store, context)
        _, index = bound(store, kit)[0]
        before = dump(store)
        if way == "missing":
            store.layout.blob(index).unlink()
        elif way == "corrupt":
            damage_file(store, index)
    shutil.rmtree(store_home / "index")
    report = rebuild_index(store_home, silent)
    assert report.exit_code == 1
    assert (str(index) in {finding.name for finding in report.repaired}) == (way != "whole")
    with Store.open(store_home) as store:
        assert dump(store) == before
        assert check(store, read_data=True).exit_code == 0


def test_a_record_from_before_there_were_indexes_is_read(store, context):
    """A manifest's record without the field has no image indexes; a repair finds those that the manifest names."""
    kit = pack_once(store, context)
    record = store.get_manifest(kit)

    class Older(msgspec.Struct, frozen=True, array_like=True):
        config: Digest
        layers: list[Digest]
        parents: list[Digest] = []

    with store.index.write() as txn:
        txn.put(schema.MANIFESTS, kit.raw, Older(record.config, record.layers))
    assert store.get_manifest(kit) == ManifestRecord(record.config, record.layers)
    gc(store)
    assert {finding.damage for finding in restore_indexes(store)} == {"missing-index"}
    assert store.get_manifest(kit) == record


def test_verify_looks_at_the_bound_index(store, context, silent):
    """Of a right ModelKit the image index is a right part; one that is corrupt or gone is named with what mends it."""
    kit = pack_once(store, context)
    report = verify(store, MINE, silent)
    assert report.is_right
    assert [part.what for part in report.parts].count("index") == 2
    _, index = bound(store, kit)[0]
    for damage in (damage_file, DAMAGE["missing-blob"], forget):
        damage(store, index)
        report = verify(store, MINE, silent)
        wrong = [part for part in report.parts if part.verdict.damages]
        assert [(part.what, part.verdict.digest) for part in wrong] == [("index", index)]
        assert {item.mend for item in wrong[0].verdict.damages} == {REPAIR_DATA}
        repair(store, read_data=True)
        assert verify(store, MINE, silent).is_right


def test_verify_names_an_index_of_another_layer(store, context, silent, tmp_path, bring):
    """A descriptor that names the image index of another layer is named; the layer itself is right."""
    kit = pack_once(store, context)
    (first, one), (second, two) = bound(store, kit)
    raw = store.read_blob(kit).replace(str(two).encode(), str(one).encode())
    raw = raw.replace(str(one).encode(), b"sha256:" + b"x" * 64, 1)
    folder = tmp_path / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    record = store.get_manifest(kit)
    for data in (raw, *map(store.read_blob, (record.config, first, second))):
        (folder / "blobs/sha256" / Digest.of(data).hex).write_bytes(data)
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(Digest.of(raw)),
                "size": len(raw), "annotations": {"org.opencontainers.image.ref.name": "wrong"}}  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    bring(store, folder, repository="localhost/other")
    report = verify(store, parse_reference("other:wrong"), silent)
    wrong = {part.verdict.digest: part.verdict.damages for part in report.parts if part.verdict.damages}
    assert set(wrong) == {first, second}
    assert {damage.mend for damages in wrong.values() for damage in damages} == {PACK_AGAIN}
    assert store.get_manifest(Digest.of(raw)).indexes == []
