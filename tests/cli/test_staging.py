"""``kitfs staging`` and the flags of a writable mount, without a mount; with one they are in ``tests/mount``."""

import os
import subprocess

import pytest

from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store


@pytest.fixture
def work(kitfs, make_layout, tmp_path):
    """A staging directory over ``a:1`` that lies beside the store."""
    assert kitfs("import", make_layout("a", "none", {"x": b"x"})).code == 0
    with Store.open(tmp_path / "home") as store:
        resolved = resolve(store, parse_reference("a:1"))
        create_staging(store, tmp_path / "work", resolved, overlay="overlay", uid=os.geteuid(), gid=os.getegid())
    return tmp_path / "work"


def test_list(kitfs, work, tmp_path):
    """A line for each with its name, which ``-q`` prints alone; nothing but headers without any."""
    lines = kitfs("staging", "list").out.splitlines()
    assert lines[0].split("  ")[0] == "NAME" and len(lines) == 2
    name, reference, parent, mounted, number, unit, place = lines[1].split()
    assert name.startswith("work-") and (reference, mounted, f"{number} {unit}", place) == (
        "a:1",
        "-",
        "0 B",
        str(work),
    )
    (one,) = kitfs("staging", "list", "--format", "json").json
    assert one["parent"].startswith(f"sha256:{parent}") and one["mountpoint"] is None and one["problem"] == ""
    assert kitfs("staging", "list", "-q").out == f"{name}\n"
    assert kitfs("staging", "remove", work).code == 0
    assert len(kitfs("staging", "list").out.splitlines()) == 1


@pytest.mark.parametrize("how", ["path", "name", "link", "relative"])
def test_remove(kitfs, work, tmp_path, how, monkeypatch):
    """By its path, by its name in the list, or by a path that leads to it; its folder goes too."""
    (work / "upper/changed").write_text("mine")
    (tmp_path / "link").symlink_to(work)
    monkeypatch.chdir(tmp_path)
    names = {"path": work, "name": kitfs("staging", "list", "-q").out.strip(), "link": "link", "relative": "./work"}
    done = kitfs("staging", "remove", names[how])
    assert (done.code, done.out) == (0, f"{work}\n")
    assert not work.exists() and list((tmp_path / "home/staging").iterdir()) == []


def test_remove_of_what_is_none(kitfs, work, tmp_path):
    """Exit code 3, and whatever lies there stays; of several the first that is none ends it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    assert kitfs("staging", "remove", tmp_path / "folder", work).code == 3
    assert (tmp_path / "folder/file").exists() and work.exists()
    assert kitfs("staging", "remove", tmp_path / "absent").code == 3


def test_broken_ones_are_listed_and_removed(kitfs, work, tmp_path):
    """One whose record or registration can not be read is named with what is wrong, and removed by its name."""
    (work / "staging.json").write_text("{")
    (one,) = kitfs("staging", "list", "--format", "json").json
    assert "staging.json" in one["problem"] and one["size"] is None
    (tmp_path / "home/staging" / f"{one['name']}.json").write_text("{")
    (two,) = kitfs("staging", "list", "--format", "json").json
    assert (two["name"], two["path"]) == (one["name"], str(work)) and "registration" in two["problem"]
    assert kitfs("gc").code == 6
    assert kitfs("staging", "remove", two["name"]).code == 0
    assert not work.exists() and kitfs("gc").code == 0


def test_du_counts_what_was_changed(kitfs, work, tmp_path):
    """Files of staging directories that lie in the store are part of it, in a line of their own."""
    with Store.open(tmp_path / "home") as store:
        resolved = resolve(store, parse_reference("a:1"))
        path = tmp_path / "home/staging/a-1"
        made = create_staging(store, path, resolved, overlay="overlay", uid=os.geteuid(), gid=os.getegid())
    (made.upper / "changed").write_bytes(bytes(100_000))
    assert "files in staging directories" in kitfs("du").out
    parts = kitfs("du", "--format", "json").json["parts"]
    disk = subprocess.run(["du", "-sB1", tmp_path / "home"], check=True, capture_output=True, text=True).stdout
    assert parts["staging"]["apparent"] > 100_000 and parts["total"]["allocated"] == int(disk.split()[0])


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", "--all", "{dir}", "--writable"),
        ("mount", "a:1", "{dir}", "--staging", "work"),
        ("mount", "a:1", "{dir}", "--writable", "--filter", "model"),
        ("mount", "a:1", "{dir}", "--writable", "-o", "modes=tar"),
        ("staging",),
        ("staging", "list", "work"),
        ("staging", "remove"),
        ("staging", "empty"),
    ],
)
def test_what_does_not_go_together(kitfs, work, tmp_path, arguments):
    """Exit code 2, and nothing is made."""
    (tmp_path / "mnt").mkdir()
    assert kitfs(*(word.format(dir=tmp_path / "mnt") for word in arguments)).code == 2
    assert list((tmp_path / "mnt").iterdir()) == []
    assert len(kitfs("staging", "list", "-q").out.splitlines()) == 1


def test_a_reference_that_is_nowhere_makes_no_staging_directory(kitfs, tmp_path):
    """Exit code 3, as without ``--writable``."""
    (tmp_path / "mnt").mkdir()
    done = kitfs("mount", "nope:1", tmp_path / "mnt", "--writable", "--staging", tmp_path / "work")
    assert done.code == 3 and not (tmp_path / "work").exists()
