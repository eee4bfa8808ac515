"""Commits that are refused: what would be dropped or lost, Kitfiles that can not be used, senseless requests."""

import os

import pytest

from kitfs.modelkit.derive import (
    DeriveOptions,
    MessageUnusable,
    ParentGiven,
    StagingNeeded,
    derive,
)
from kitfs.modelkit.entries import PathUnreadable
from kitfs.modelkit.left_behind import FilesLeftBehind
from kitfs.modelkit.pack import KitfileNotFound
from kitfs.modelkit.pack_source import PackUnusable
from kitfs.modelkit.parentage import PathTaken
from kitfs.modelkit.staging import StagingUnusable
from kitfs.modelkit.untracked import FilesUntracked
from kitfs.modelkit.walk import PathsUnpackable
from kitfs.oci.kitfile import KitfileMalformed
from kitfs.oci.reference import parse_reference
from kitfs.store.errors import TagTaken
from kitfs.store.store import Store

KITFILE = "manifestVersion: 1.0.0\nmodel: {name: m, path: model}\ndatasets: [{path: data}]\ndocs: [{path: docs/a}]\n"


def lines(work, **options) -> list[str]:
    """What a commit would drop."""
    with pytest.raises(FilesUntracked) as caught:
        work.commit(**options)
    return caught.value.lines


def test_what_no_layer_can_hold_is_listed(work):
    """Untracked files, links and pipes stop the commit, wherever they are; what .kitignore names does not."""
    work.make()
    work.write("stray\x1b[0m")
    work.write("ignored")
    work.write(".kitignore", "ignored\ndata/link2\n")
    (work.write("data/z").parent / "link").symlink_to("z")
    (work.top / "data/link2").symlink_to("z")
    os.mkfifo(work.top / "data/pipe")
    assert lines(work) == [
        "stray\\x1b[0m",
        "data/link (a symbolic link, which no layer can hold)",
        "data/pipe (neither a file nor a directory, which no layer can hold)",
    ]
    assert work.commit(ignores_untracked=True).is_new
    with pytest.raises(FileNotFoundError):
        work.read("ignored")


MODEL = "manifestVersion: 1.0.0\nmodel: {name: m, path: model}\n"
BASED = "manifestVersion: 1.0.0\nmodel: {name: m, path: 'base:1'}\ncode: [{path: .}]\n"


def make_based(work) -> None:
    """A ModelKit that has its model from another."""
    work.make(MODEL, {"model/w": "weights", "model/v": "vocab"}, "base:1")
    work.make(BASED, {"run.py": "1"})


def test_change_of_a_borrowed_file_is_listed(work):
    """What was done to files of the ModelKit that model.path names would not be in the child, and is said."""
    make_based(work)
    assert not work.commit().is_new
    work.write("model/w", "changed")
    work.remove("model/v")
    found = ["model/w (changed; it belongs to base:1, which model.path names)"]
    if work.is_staged:  # a folder need not have them
        found.append("model/v (deleted; it belongs to base:1, which model.path names)")
    assert lines(work) == found
    work.write("model/w", "weights")
    work.write("model/mine")
    assert "model/mine" in lines(work)


def test_claimed_file_of_the_base_is_refused(staged):
    """An entry that claims a file of the ModelKit that model.path names would put it into the tree twice."""
    make_based(staged)
    staged.write("Kitfile", BASED + "docs: [{path: model/w}]\n")
    with pytest.raises(PathTaken):
        staged.commit(ignores_untracked=True)


def test_model_of_another_base_goes_with_it(staged):
    """When model.path names another ModelKit, untouched files of the former one go; touched ones are listed."""
    make_based(staged)
    staged.write("Kitfile", BASED.replace("base:1", "other:1"))
    type(staged)(staged.store, staged.folder, is_staged=True).make(MODEL, {"model/w": "better"}, "other:1")
    assert staged.commit().is_new and staged.read("model/w") == "better"
    staged.write("model/v", "touched")
    assert lines(staged, moves_tag=True) == ["model/v"]


def test_files_of_a_remote_dataset_are_told_of(work):
    """Files in the place of a dataset that lies elsewhere are not committed, and a person is told."""
    kitfile = KITFILE.replace("[{path: data}]", "[{path: data}, {path: far, remotePath: 's3://b/k', remoteHash: 'h'}]")
    work.make(kitfile)
    work.write("far/1")
    assert not work.commit().is_new
    assert work.warnings == ["a file is left out below far: the dataset lies at s3://b/k"]


def test_rebase_refuses_what_would_be_lost(staged):
    """With a rebase to follow, files in the staging directory that the child does not hold stop the commit."""
    staged.make()
    for name in ("data/new", "stray", "ignored", ".kitignore"):
        staged.write(name, "ignored")
    (staged.top / "link").symlink_to("z")
    with pytest.raises(FilesLeftBehind) as caught:
        staged.commit(rebases=True, ignores_untracked=True)
    assert caught.value.paths == [".kitignore", "ignored", "link", "stray"]
    for name in caught.value.paths:
        (staged.top / name).unlink()
    staged.write("Kitfile", KITFILE)
    derived = staged.commit(rebases=True)
    assert derived.is_new and derived.is_as_read()
    staged.write("data/later")
    assert not derived.is_as_read()


def test_kitfile_that_is_none_is_refused(staged):
    """A Kitfile that was deleted, or is a link or a directory now, is an error that says how to get one."""
    staged.make()
    staged.remove("Kitfile")
    with pytest.raises(KitfileNotFound) as caught:
        staged.commit()
    assert caught.value.hint == "kitfs info kit:1 prints the parent's"
    (staged.top / ".wh.Kitfile").unlink()
    (staged.top / "Kitfile").symlink_to("other")
    with pytest.raises(KitfileNotFound, match="Kitfile is no file"):
        staged.commit()
    (staged.top / "Kitfile").unlink()
    (staged.top / "Kitfile").mkdir()
    with pytest.raises(KitfileNotFound, match="Kitfile is no file"):
        staged.commit()
    staged.write("kitfile", KITFILE)
    staged.write("data/x", "12")
    assert staged.commit().is_new


def test_ignore_file_that_is_none_is_refused(staged):
    """A .kitignore that is a link or a directory is not passed over: what it should leave out would be committed."""
    staged.make()
    (staged.top / ".kitignore").symlink_to("elsewhere")
    with pytest.raises(PathUnreadable, match="no file"):
        staged.commit()
    (staged.top / ".kitignore").unlink()
    (staged.top / ".kitignore").mkdir()
    with pytest.raises(PathUnreadable, match="no file"):
        staged.commit()


def test_path_that_is_gone_is_told_with_its_line(work):
    """When an entry's files are gone and the Kitfile still names them, its line is told, also of an untouched one."""
    work.make()
    work.remove("model")
    with pytest.raises(PathsUnpackable) as caught:
        work.commit()
    assert caught.value.problems == ["line 4: model does not exist"]


def test_all_that_is_wrong_with_a_kitfile_is_told(work):
    """Notation, rules and paths are judged at once, each with its line."""
    work.make()
    work.write("Kitfile", "manifestVersion: 1.0.0\nmodell: {}\ncode: [{path: /x}, {path: nix}]\n")
    with pytest.raises(KitfileMalformed) as caught:
        work.commit()
    text = str(caught.value)
    assert all(part in text for part in ("line 2: unknown key 'modell'", "line 3: code layer 0", "line 3: nix"))


@pytest.mark.parametrize(
    ("tag", "message", "error"),
    [
        ("kit@sha256:" + "0" * 64, "", PackUnusable),
        ("kit:2", "x" * 65537, MessageUnusable),
        ("kit:2", "a\0b", MessageUnusable),
        ("kit:2", "a\udc80b", MessageUnusable),
        ("kit:1", "", TagTaken),
    ],
)
def test_request_that_can_not_be_done_is_refused(work, tag, message, error):
    """A reference without a tag, a message that is none, a tag that is there: nothing is done."""
    work.make()
    work.write("docs/a")
    with pytest.raises(error):
        work.commit(tag, message=message)
    assert work.tags() == ["kit:1"]


def test_staging_directory_of_another_store_is_refused(staged, tmp_path):
    """A staging directory belongs to one store; with another one that store is named."""
    staged.make()
    with Store.open(tmp_path / "other") as other, pytest.raises(StagingUnusable) as caught:
        derive(other, staged.path, parse_reference("kit:2"))
    assert caught.value.hint == f"--home {staged.store.home}"
    with pytest.raises(ParentGiven):
        derive(staged.store, staged.path, parse_reference("kit:2"), parent=staged.parent)
    with pytest.raises(StagingNeeded):
        derive(staged.store, tmp_path, parse_reference("kit:2"), options=DeriveOptions(rebases=True))
