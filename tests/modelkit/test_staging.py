"""Staging directories: what makes one, how it is moved onto another ModelKit, and what is refused."""

import os

import msgspec
import pytest

from kitfs.modelkit import staging as stagings
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging_list import list_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.staging import iter_registrations
from kitfs.store.store import Store


@pytest.fixture
def store(store_home, make_layout, make_layer, bring, tmp_path):
    """A store with ``one:1`` and ``two:1``."""
    with Store.open(store_home) as store:
        for name in ("one", "two"):
            bring(store, make_layout(tmp_path / name, "1", [make_layer("", {"model/w": name.encode()})]))
        yield store
        assert check(store).problems == []


@pytest.fixture
def find(store):
    """``find("one:1")``: that ModelKit with its parents."""
    return lambda text: resolve(store, parse_reference(text))


@pytest.fixture
def create(store, find):
    """``create(path)``: a staging directory over ``one:1``."""
    return lambda path: stagings.create_staging(
        store, path, find("one:1"), overlay="overlay", uid=os.geteuid(), gid=os.getegid()
    )


def test_created_directory_is_opened_by_anybody(create, tmp_path, store):
    """Record, ``upper`` with the mode of what it lies over, ``work``, and a registration in its store."""
    made = create(tmp_path / "work")
    opened = stagings.open_staging(tmp_path / "work")
    assert opened == made and stagings.find_staging(tmp_path / "work") == made
    assert opened.record.store == str(store.home) and opened.record.reference == "one:1"
    assert opened.upper.stat().st_mode & 0o777 == 0o755 and list(opened.upper.iterdir()) == []
    assert [record.manifests for _, record in iter_registrations(store.layout)] == [opened.record.manifests]
    assert not stagings.is_mounted(opened)


def test_what_a_killed_command_began_is_finished_by_the_next(create, tmp_path):
    """Empty parts without a record are nobody's yet."""
    for name in ("upper", "work"):
        (tmp_path / "work" / name).mkdir(parents=True)
    assert stagings.find_staging(tmp_path / "work") is None
    assert create(tmp_path / "work").upper.is_dir()


@pytest.mark.parametrize("name", ["notes.txt", "upper/changed", "staging.json"])
def test_directory_with_other_things_is_refused(create, tmp_path, name):
    """Whatever it holds stays, and it does not become a staging directory."""
    path = tmp_path / "work" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(stagings.StagingUnusable):
        create(tmp_path / "work")
    assert path.read_text() == "{}" and stagings.find_staging(tmp_path / "work") is None


def test_place_inside_the_store_is_refused(create, store):
    """Only ``staging/`` is for staging directories."""
    for path in (store.home / "blobs/work", store.home, store.home / "staging/a/b"):
        with pytest.raises(stagings.StagingUnusable, match="inside the store"):
            create(path)
    assert create(store.home / "staging/a").path == store.home / "staging/a"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[:-1], id="cut short"),
        pytest.param(lambda raw: raw.replace(b'"manifests":["', b'"manifests":["x'), id="no digest"),
        pytest.param(lambda raw: raw.replace(b'"writable"', b'"odd"'), id="unknown modes"),
        pytest.param(lambda raw: raw.replace(b'"version":1', b'"version":2'), id="newer"),
        pytest.param(lambda _: b"\xff", id="no text"),
    ],
)
def test_damaged_record_is_named(create, tmp_path, damage):
    """It is an error with the directory's name and the command that removes it, and never a plain folder."""
    create(tmp_path / "work")
    record = tmp_path / "work/staging.json"
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(stagings.StagingMalformed, match="work") as caught:
        stagings.find_staging(tmp_path / "work")
    assert "kitfs staging remove" in caught.value.hint


def test_file_of_the_same_name_makes_no_staging_directory(tmp_path):
    """A project may have a ``staging.json`` of its own."""
    (tmp_path / "staging.json").write_text('{"stage": 1}')
    assert stagings.find_staging(tmp_path) is None


def test_moved_it_is_empty_over_the_other_and_keeps_that_alone(create, find, store, tmp_path):
    """What was changed goes, read-only folders too, and the former ModelKit is not kept any more."""
    made = create(tmp_path / "work")
    (made.upper / "sealed").mkdir()
    (made.upper / "sealed/file").write_text("mine")
    (made.upper / "sealed").chmod(0o500)
    moved = stagings.rebase_staging(store, made, find("two:1"))
    assert moved == stagings.open_staging(tmp_path / "work")
    assert moved.record.id == made.record.id and moved.record.reference == "two:1"
    assert moved.manifests == [*find("two:1").digests] and list(moved.upper.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["staging.json", "upper", "work"]
    with store.lease("untag") as lease:
        change = store.change(lease)
        change.remove_tag("localhost/one", "1")
        change.remove_tag("localhost/two", "1")
        change.commit()
    gc(store)
    assert [digest for digest, _ in store.iter_manifests()] == moved.manifests


def test_half_moved_directory_is_finished_by_who_opens_it(create, find, store, tmp_path):
    """A record that says that ``upper`` is stale: what it holds belongs to the ModelKit before."""
    made = create(tmp_path / "work")
    (made.upper / "old").touch()
    half = msgspec.structs.replace(made.record, manifests=[str(one) for one in find("two:1").digests], is_stale=True)
    (tmp_path / "work/staging.json").write_bytes(msgspec.json.encode(half))
    opened = stagings.find_staging(tmp_path / "work")
    assert opened is not None and not opened.record.is_stale
    assert opened.manifests == [*find("two:1").digests] and list(opened.upper.iterdir()) == []


def test_directory_that_another_command_holds_is_left_alone(create, find, store, tmp_path):
    """Moving and removing wait for nobody: exit code 7."""
    made = create(tmp_path / "work")
    with stagings.hold_staging(made.path):
        with pytest.raises(stagings.StagingHeld):
            stagings.rebase_staging(store, made, find("two:1"))
        with pytest.raises(stagings.StagingHeld):
            stagings.remove_staging(store.layout, made.path)
    assert stagings.open_staging(made.path) == made


def test_removed_directory_leaves_what_was_not_its_own(create, store, tmp_path):
    """Other files in it stay, and so does it; a broken one is removed too, and one that is not there is forgotten."""
    made = create(tmp_path / "work")
    (made.path / "notes.txt").touch()
    stagings.remove_staging(store.layout, made.path)
    assert [path.name for path in made.path.iterdir()] == ["notes.txt"]
    broken = create(tmp_path / "broken")
    broken.upper.rmdir()
    assert [one.problem != "" for one in list_staging(store.layout)] == [True]
    stagings.remove_staging(store.layout, broken.path)
    gone = create(tmp_path / "gone")
    for path in (gone.upper, gone.work):
        path.rmdir()
    (gone.path / "staging.json").unlink()
    gone.path.rmdir()
    stagings.remove_staging(store.layout, gone.path)
    assert list(iter_registrations(store.layout)) == [] and not broken.path.exists()
