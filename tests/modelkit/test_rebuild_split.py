"""Split blobs when the index is made anew: what is damaged is named, and the members that are right can be read."""

import os
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.reader import LayerReader
from kitfs.modelkit.pack import pack
from kitfs.modelkit.rebuild import rebuild_index
from kitfs.oci.reference import parse_reference
from kitfs.store import schema
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.recipe import encode_recipe, read_recipe
from kitfs.store.records import KIND_FILE, MemberRecord
from kitfs.store.store import Store


def rot(path):
    """One bit, and the old times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def split_layer(store, reference):
    """The largest split layer of a ModelKit, and its recipe."""
    record = store.find_manifest(store.get_tag("localhost/" + reference[0], reference[1]).manifest)
    layers = [layer for layer in record.layers if store.get_blob(layer).form == "split"]
    layer = max(layers, key=lambda layer: store.get_blob(layer).size)
    return layer, read_recipe(store.layout, layer)


MINE, COPIED = ("mine", "1"), ("myllm", "3.1.4")


def bring_again(store, tmp_path, bring, shared_fixtures):
    bring(store, shared_fixtures / "kit-v1.7.0")
    created_s = 1_700_000_000
    pack(store, tmp_path / "context", None, [parse_reference("mine:1")], created_s=created_s)


@pytest.mark.parametrize("reference", [MINE, COPIED])
@pytest.mark.parametrize("damage", [rot, Path.unlink, lambda path: os.truncate(path, 5)], ids=["rot", "gone", "cut"])
def test_damaged_member_of_a_split_blob_is_named_and_the_others_can_be_read(
    many_forms, silent, read_all, bring, shared_fixtures, tmp_path, reference, damage
):
    """The blob is named as lost and nothing is moved; other members are read, that is an error, an import heals."""
    with Store.open(many_forms) as store:
        gc(store)  # what has no tag may go below
        everything = read_all(store)
        layer, recipe = split_layer(store, reference)
        victim = recipe.members[-1]
        pins = store.find_member(victim.digest).pins
        assert layer in pins
        toc = store.get_toc(layer)
    damage(many_forms / "members/sha256" / victim.digest.hex[:2] / victim.digest.hex)
    report = rebuild_index(many_forms, silent)
    assert report.exit_code == 6
    assert {item.name for item in report.findings if item.damage == "wrong-digest"} == {str(pin) for pin in pins}
    assert {item.name for item in report.problems} == {str(victim.digest), *(str(pin) for pin in pins)}
    with Store.open(many_forms) as store:
        assert check(store, read_data=True).exit_code == 6
        gc(store, grace_s=0)
        assert store.layout.recipe(layer).exists()
        assert not [path for path in store.layout.quarantine.glob("*") if "index" not in path.name]
        assert store.get_blob(layer).form == "split"
        assert store.get_toc(layer) == toc
        with LayerReader(store, layer) as reader:
            for number, member in enumerate(toc):
                if member.kind != KIND_FILE:
                    continue
                if member.digest == victim.digest.raw:
                    assert reader.find_state(number) == "lazy"
                    with pytest.raises(LayerCorrupt):
                        reader.open_member(number).read(0, member.size)
                else:
                    assert reader.find_state(number) == "native"
                    data = reader.open_member(number).read(0, member.size)
                    assert Digest.of(data).raw == member.digest
        bring_again(store, tmp_path, bring, shared_fixtures)
        assert check(store, read_data=True).exit_code == 0
        assert everything.items() <= read_all(store).items()
    assert rebuild_index(many_forms, silent).exit_code == 0


@pytest.mark.parametrize("reference", [MINE, COPIED])
def test_damaged_recipe_is_named_and_healed_by_an_import(
    many_forms, silent, read_all, bring, shared_fixtures, tmp_path, reference
):
    """A recipe that does not verify is named, stays where it is and gives no record; its members stay with the tag."""
    with Store.open(many_forms) as store:
        gc(store)  # what has no tag may go below
        everything = read_all(store)
        layer, recipe = split_layer(store, reference)
    rot(many_forms / "recipes/sha256" / layer.hex[:2] / layer.hex)
    report = rebuild_index(many_forms, silent)
    assert report.exit_code == 6
    [found] = [item for item in report.findings if item.damage == "corrupt-recipe"]
    assert found.name == str(layer)
    with Store.open(many_forms) as store:
        assert check(store).exit_code == 6
        assert store.find_blob(layer) is None
        gc(store, grace_s=0)
        assert store.layout.recipe(layer).exists()
        assert all(store.layout.member(member.digest).exists() for member in recipe.members)
        bring_again(store, tmp_path, bring, shared_fixtures)
        assert check(store, read_data=True).exit_code == 0
        assert everything.items() <= read_all(store).items()


def test_blob_in_both_forms_is_recorded_whole_and_from_its_recipe_when_that_is_wrong(many_forms, silent, read_all):
    """The whole file wins while it is right; else it is moved aside and the recipe taken, and nothing is lost."""
    with Store.open(many_forms) as store:
        everything = read_all(store)
        layer, _ = split_layer(store, MINE)
        whole = store.layout.blob(layer)
        with store.open_content(layer) as content:
            whole.write_bytes(b"".join(content.iter_pieces()))
        whole.chmod(0o444)
    assert rebuild_index(many_forms, silent).exit_code == 0
    with Store.open(many_forms) as store:
        assert store.get_blob(layer).form == "whole"
        with store.index.read() as txn:
            assert not [record for _, record in txn.iter(schema.MEMBERS, MemberRecord) if layer in record.pins]
        assert check(store, read_data=True).exit_code == 0
        assert read_all(store) == everything
    rot(whole)
    report = rebuild_index(many_forms, silent)
    assert report.exit_code == 1
    assert [item.name for item in report.repaired] == [str(layer)]
    with Store.open(many_forms) as store:
        assert store.get_blob(layer).form == "split"
        assert not whole.exists()
        assert check(store, read_data=True).exit_code == 0
        assert read_all(store) == everything


def test_recipe_that_gives_other_bytes_is_not_recorded(many_forms, silent):
    """A recipe with a right checksum and members that are all right, which is not the blob's, is named."""
    with Store.open(many_forms) as store:
        layer, recipe = split_layer(store, MINE)
        rest = bytearray(recipe.unpack_rest())
        rest[-1] ^= 1
        path = store.layout.recipe(layer)
        path.chmod(0o644)
        path.write_bytes(encode_recipe(layer, recipe.size, recipe.members, rest))
    report = rebuild_index(many_forms, silent)
    assert [item.name for item in report.findings if item.damage == "corrupt-recipe"] == [str(layer)]
    assert report.exit_code == 6
    with Store.open(many_forms) as store:
        assert store.find_blob(layer) is None
        assert path.exists()
