"""kit's storage before a mount: what is new there comes in, and what kitfs set stays."""

import json

import pytest

from kitfs.digest import Digest
from kitfs.errors import MalformedError
from kitfs.oci.reference import parse_reference
from kitfs.transfer.kit_refresh import find_in_kit_storage, is_import_due, refresh_from_kit_storage

LATEST = parse_reference("myllm:latest")
TAR = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
GZIP = "sha256:54a4c05214183b267e3b0579af3796ea3f41d88554315a8bbe7757808ae8aba8"


@pytest.fixture
def home(copy_home):
    return copy_home("kit-v1.7.0")


@pytest.fixture
def move(home, kit_file):
    """Point a tag of kit's at another of its tags."""

    def run(tag: str, other: str) -> None:
        path = kit_file(home, "localhost/myllm", "tags")
        tags = json.loads(path.read_text())
        tags[tag] = tags[other]
        path.write_text(json.dumps(tags))

    return run


def test_what_kit_has_comes_in(store, home):
    """A reference that only kit has is imported, linked, and said."""
    assert is_import_due(store, home, LATEST)
    refresh = refresh_from_kit_storage(store, home, LATEST)
    assert [str(move.after) for move in refresh.moves] == [TAR]
    assert store.get_tag("localhost/myllm", "latest").origin == "kit"
    assert find_in_kit_storage(home, LATEST) == Digest.parse(TAR)


def test_a_second_look_does_nothing(store, home):
    """Where nothing moved, nothing is imported and nothing is written."""
    refresh_from_kit_storage(store, home, LATEST)
    before = store.generation()
    assert refresh_from_kit_storage(store, home, LATEST).moves == []
    assert not is_import_due(store, home, LATEST)
    assert store.generation() == before


def test_a_moved_tag_is_imported_anew(store, home, move):
    """Where kit moved a tag, it is imported anew, and the sentence has both ids."""
    refresh_from_kit_storage(store, home, LATEST)
    move("latest", "3.1.4-gzip")
    assert is_import_due(store, home, LATEST)
    (moved,) = refresh_from_kit_storage(store, home, LATEST).moves
    assert "moved" in str(moved) and TAR in str(moved) and GZIP in str(moved)
    assert str(store.get_tag("localhost/myllm", "latest").manifest) == GZIP


def test_a_tag_set_here_stays(store, home, move):
    """A tag that kitfs set is not looked up."""
    refresh_from_kit_storage(store, home, LATEST)
    with store.lease("test") as lease:
        change = store.change(lease)
        change.set_tag("localhost/myllm", "latest", Digest.parse(TAR), "here")
        change.commit()
    move("latest", "3.1.4-gzip")
    assert not is_import_due(store, home, LATEST)
    assert refresh_from_kit_storage(store, home, LATEST).moves == []


def test_a_tag_that_kit_removed_stays(store, home, kit_file):
    """What kit removed is still here."""
    refresh_from_kit_storage(store, home, LATEST)
    kit_file(home, "localhost/myllm", "tags").unlink()
    kit_file(home, "localhost/myllm", "index").unlink()
    assert refresh_from_kit_storage(store, home, LATEST).moves == []
    assert str(store.get_tag("localhost/myllm", "latest").manifest) == TAR


def test_parents_are_looked_up_too(store, home, move):
    """The parent of a ModelKit comes along, and is imported anew when kit moved it."""
    tuned = parse_reference("registry.example.com:8080/acme/team_a/tuned:1")
    refresh_from_kit_storage(store, home, tuned)
    assert str(store.get_tag("localhost/myllm", "3.1.4").manifest) == TAR
    assert not is_import_due(store, home, tuned)
    move("3.1.4", "3.1.4-gzip")
    assert is_import_due(store, home, tuned)
    (moved,) = refresh_from_kit_storage(store, home, tuned).moves
    assert moved.reference.display == "myllm:3.1.4" and str(moved.after) == GZIP


def test_storage_that_can_not_be_read(store, home, kit_file):
    """Half a file of kit's is an error where its answer is needed, and a warning where ours will do."""
    path = kit_file(home, "localhost/myllm", "tags")
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(MalformedError):
        refresh_from_kit_storage(store, home, LATEST)
    path.write_text(whole)
    refresh_from_kit_storage(store, home, LATEST)
    path.write_text(whole[:100])
    assert is_import_due(store, home, LATEST)
    refresh = refresh_from_kit_storage(store, home, LATEST)
    assert refresh.moves == [] and len(refresh.warnings) == 1


def test_no_kit_at_all(store, tmp_path):
    """Without kit's home nothing happens."""
    assert refresh_from_kit_storage(store, tmp_path / "absent", LATEST).moves == []
    assert find_in_kit_storage(tmp_path / "absent", LATEST) is None
    assert not is_import_due(store, tmp_path, LATEST)
    assert is_import_due(store, tmp_path / "absent", LATEST)
