"""Registered staging directories: roots of garbage collection by files, for as long as they are there."""

import shutil

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.store import staging
from kitfs.store.errors import IndexDisagrees, ManifestNotFound
from kitfs.store.fsck import check
from kitfs.store.gc import gc


@pytest.fixture
def place(tmp_path):
    """A staging directory, as far as the store knows one."""
    folder = tmp_path / "project/work"
    folder.mkdir(parents=True)
    (folder / staging.RECORD_NAME).touch()
    return folder


def kinds(report):
    return {victim.kind for victim in report.victims}


def test_registered_directory_keeps_the_whole_chain(store, build, place):
    """Nothing of its ModelKit and every parent goes; when it is forgotten, all goes."""
    kit, parent = build.kit("kit", [b"a"], tags=[]), build.kit("parent", [b"b"], tags=[])
    staging.register(store.layout, place, "kit:1", [kit, parent])
    gc(store)
    assert {digest for digest, _ in store.iter_manifests()} == {kit, parent}
    assert store.find_blob(Digest.of(b"b")) is not None
    staging.forget(store.layout, place)
    gc(store)
    assert list(store.iter_manifests()) == [] and list(store.layout.staging.iterdir()) == []


def test_directory_elsewhere_has_a_link_and_one_of_the_stores_has_none(store, build, place):
    """Each registration lies beside the directory or a link to it; registering again replaces it."""
    kit = build.kit()
    own = store.layout.staging / "kit-1"
    own.mkdir(parents=True)
    for path in (place, own, place):
        staging.register(store.layout, path, "kit:1", [kit])
    found = {record.path: path.with_suffix("") for path, record in staging.iter_registrations(store.layout)}
    assert found.keys() == {str(place), str(own)}
    assert found[str(own)] == own and found[str(place)].readlink() == place
    assert len(list(store.layout.staging.iterdir())) == 4


@pytest.mark.parametrize("gone", ["", "..", staging.RECORD_NAME])
def test_removed_directory_is_no_root(store, build, place, gone):
    """Removed by hand, with the folder around it or only its record: GC takes what it kept, and its registration."""
    kit = build.kit(tags=[])
    staging.register(store.layout, place, "kit:1", [kit])
    if gone == staging.RECORD_NAME:
        (place / gone).unlink()
    else:
        shutil.rmtree((place / gone).resolve())
    assert "leftover" in {finding.damage for finding in check(store).findings}
    assert kinds(gc(store)) >= {"ModelKit", "staging"}
    assert store.find_manifest(kit) is None and list(store.layout.staging.iterdir()) == []


def test_directory_on_a_file_system_that_is_not_mounted_is_a_root(store, build, place):
    """It is not there, but neither is the file system that it lay on."""
    kit = build.kit(tags=[])
    staging.register(store.layout, place, "kit:1", [kit])
    ((path, record),) = staging.iter_registrations(store.layout)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, device=record.device + 1)))
    shutil.rmtree(place)
    assert gc(store).victims == [] and store.find_manifest(kit) is not None


def test_unreadable_registration_stops_the_sweep(damaged, build_damaged, place):
    """What it keeps can not be told, so nothing goes until it is registered again or forgotten."""
    kit = build_damaged.kit(tags=[])
    staging.register(damaged.layout, place, "kit:1", [kit])
    ((path, _),) = staging.iter_registrations(damaged.layout)
    path.write_bytes(b"{}")
    assert list(staging.iter_registrations(damaged.layout)) == [(path, None)]
    with pytest.raises(IndexDisagrees, match="can not be read"):
        gc(damaged)
    assert "unreadable-staging" in {finding.damage for finding in check(damaged).problems}
    staging.register(damaged.layout, place, "kit:1", [kit])
    assert gc(damaged).victims == [] and check(damaged).problems == []


def test_directory_over_what_is_gone_is_refused(store, build, place):
    """A ModelKit that GC took can not be registered; what was registered before stays."""
    kit = build.kit(tags=[])
    staging.register(store.layout, place, "kit:1", [kit])
    with pytest.raises(ManifestNotFound):
        staging.register(store.layout, place, "kit:2", [Digest("0" * 64)])
    ((_, record),) = staging.iter_registrations(store.layout)
    assert record.manifests == [str(kit)] and gc(store).victims == []


def test_registration_of_a_dead_writer_goes(store, build, place):
    """What a killed registration left is removed by the next collection."""
    staging.register(store.layout, place, "kit:1", [build.kit()])
    (store.layout.staging / "work-0.1234.new").write_bytes(b"half")
    assert kinds(gc(store)) == {"staging"}
    assert len(list(store.layout.staging.iterdir())) == 2
