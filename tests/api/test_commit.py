"""``kitfs.commit``: a changed folder is a new ModelKit, and ``kitfs.open`` reads it."""

import logging
import os
from datetime import UTC, datetime

import pytest

import kitfs
from kitfs.cli.main import run
from kitfs.errors import BusyError, NotFoundError, UsageError
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

CREATED = datetime(2026, 3, 1, 10, tzinfo=UTC)


@pytest.fixture
def work(home, tmp_path):
    """A folder with what myllm:3.1.4 holds."""
    folder = tmp_path / "work"
    assert run(["unpack", "myllm:3.1.4", "-d", str(folder), "--home", str(home), "-q", "--progress", "none"]) == 0
    return folder


def read(kit: kitfs.ModelKit) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in kit.files().iter_files()}


def test_commit_is_read_again(home, work):
    """The child has what was changed, all else of its parent, and its lineage; the parent is what it was."""
    with kitfs.open("myllm:3.1.4", home=home) as kit:
        parent, before = kit.id, read(kit)
    (work / "docs/card.md").write_text("tuned\n")
    made = kitfs.commit(
        work, "myllm:3.1.5", parent="myllm:3.1.4", message="tuned\nin march", created=CREATED, home=str(home)
    )
    assert made.parent == parent != made.id and made.is_new
    with kitfs.open("myllm:3.1.5", home=home) as child:
        assert (child.id, child.parent, child.parent_reference) == (made.id, parent, "myllm:3.1.4")
        assert (child.message, child.created) == ("tuned\nin march", CREATED)
        assert read(child) == before | {"docs/card.md": b"tuned\n"}
    with kitfs.open("myllm:3.1.4", home=home) as kit:
        assert kit.id == parent and read(kit) == before


def test_same_commit_is_the_same_kit(home, work):
    """The same change, message and time give the same ModelKitID."""
    (work / "docs/card.md").write_text("tuned\n")
    ids = {
        kitfs.commit(work, f"myllm:{tag}", parent="myllm:3.1.4", created=CREATED, home=home).id for tag in ("a", "b")
    }
    assert len(ids) == 1


def test_nothing_to_commit_is_said(home, work):
    """A folder that is as its parent was makes no ModelKit, and no tag."""
    made = kitfs.commit(work, "myllm:3.1.5", parent="myllm:3.1.4", home=home)
    assert made == kitfs.Commit(id=made.parent, parent=made.parent, is_new=False)
    with pytest.raises(NotFoundError):
        kitfs.open("myllm:3.1.5", home=home)


def test_tag_that_is_there_needs_force(home, work):
    """A tag is moved only when that is asked for."""
    (work / "docs/card.md").write_text("tuned\n")
    with pytest.raises(BusyError):
        kitfs.commit(work, "myllm:3.1.4", parent="myllm:3.1.4", home=home)
    made = kitfs.commit(work, "myllm:3.1.4", parent="myllm:3.1.4", force=True, home=home)
    with kitfs.open("myllm:3.1.4", home=home) as kit:
        assert kit.id == made.id and kit.parent == made.parent


def test_files_of_no_entry_stop_it(home, work):
    """What the Kitfile does not claim is an error with its name, and left out only when that is asked for."""
    (work / "notes.txt").write_text("x")
    (work / "docs/card.md").write_text("tuned\n")
    with pytest.raises(kitfs.KitfsError, match=r"notes\.txt"):
        kitfs.commit(work, "myllm:3.1.5", parent="myllm:3.1.4", home=home)
    kitfs.commit(work, "myllm:3.1.5", parent="myllm:3.1.4", ignore_untracked=True, home=home)
    with kitfs.open("myllm:3.1.5", home=home) as kit:
        assert not (kit / "notes.txt").exists() and (kit / "docs/card.md").read_text() == "tuned\n"


def test_folder_without_a_parent(tmp_path, store_home):
    """Any folder with a Kitfile is committed, into a store made for it, compressed as asked; nobody is its parent."""
    folder = tmp_path / "new"
    (folder / "m").mkdir(parents=True)
    (folder / "m/w").write_bytes(b"weights" * 1000)
    (folder / "Kitfile").write_text('manifestVersion: "1.0.0"\nmodel:\n  path: m\n')
    made = kitfs.commit(folder, "new:1", compression="gzip", home=store_home)
    assert made.parent is None and made.is_new
    with kitfs.open("new:1", home=store_home) as kit:
        assert (kit.parent, kit.message) == (None, "") and b"tar+gzip" in kit.manifest
        assert kit.model is not None and (kit.model / "w").read_bytes() == b"weights" * 1000


def test_staging_directory_knows_its_parent(home, tmp_path):
    """What was written to a staging directory is committed over the ModelKit that it is of, mounted or not."""
    with Store.open(home) as store:
        resolved = resolve(store, parse_reference("myllm:3.1.4"))
        staging = create_staging(
            store, tmp_path / "staging", resolved, overlay="overlay", uid=os.getuid(), gid=os.getgid()
        )
    (staging.upper / "docs").mkdir(exist_ok=True)
    (staging.upper / "docs/new.md").write_text("new\n")
    made = kitfs.commit(tmp_path / "staging", "myllm:3.1.5", home=home)
    with kitfs.open("myllm:3.1.5", home=home) as kit:
        assert kit.id == made.id and kit.parent == made.parent == str(resolved.digests[0])
        assert (kit / "docs/new.md").read_text() == "new\n" and (kit / "docs/card.md").exists()
    with pytest.raises(UsageError):
        kitfs.commit(tmp_path / "staging", "myllm:3.1.6", parent="myllm:3.1.4", home=home)


def test_what_is_no_value_is_refused(home, work):
    """A compression that there is not, a time without a zone and an absent parent are told, and nothing is made."""
    for wrong, kind in [
        ({"compression": "lzma"}, ValueError),
        ({"created": datetime(2026, 3, 1)}, ValueError),
        ({"parent": "nope:1"}, NotFoundError),
    ]:
        with pytest.raises(kind):
            kitfs.commit(work, "myllm:3.1.5", home=home, **wrong)
    with pytest.raises(NotFoundError):
        kitfs.open("myllm:3.1.5", home=home)


def test_warnings_are_the_loggers(home, work, caplog):
    """What pack would warn of is a warning of the logger ``kitfs``."""
    (work / "docs/w..md").write_text("x")  # kit does not unpack such names
    with caplog.at_level(logging.WARNING, "kitfs"):
        kitfs.commit(work, "myllm:3.1.5", parent="myllm:3.1.4", home=home)
    assert "w..md" in caplog.text
