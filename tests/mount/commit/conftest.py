"""Commits of what was changed in writable mounts, on a store that the tests of a module share; a real kit beside it."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def commit(workshop: Any, run_verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a verb in this process on the workshop's store, at a fixed time; what it printed, as JSON where it is one."""
    for name in ("KITFS_HOME", "KITOPS_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, workshop.environment[name])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")

    def call(*arguments: object, status: int | None = 0) -> Any:
        done = run_verb(*arguments, "--progress", "none", "--format", "json")
        assert status in (None, done.code), done.err
        return done.json if done.out.startswith("{") else done

    return call


@pytest.fixture
def edit_mounted(workshop: Any, tmp_path: Path) -> Callable[..., Path]:
    """Change what is shown of a ModelKit by a writable mount; the staging directory, and its mount point."""

    def do(reference: str, edit: Callable[[Path], None], inside: Callable[[Path], None] = lambda _place: None) -> Path:
        (tmp_path / "mnt").mkdir(exist_ok=True)
        workshop.run("mount", reference, tmp_path / "mnt", "--writable", "--staging", tmp_path / "staging")
        try:
            edit(tmp_path / "mnt")
            inside(tmp_path / "mnt")
        finally:
            workshop.run("umount", tmp_path / "mnt")
        return tmp_path / "staging"

    return do


@pytest.fixture
def commit_edited(commit: Callable[..., Any], edit_mounted: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """``(reference, edit)``: ``child:a`` is what was edited over a ModelKit; what that commit said.

    It was made of the mount. The staging directory gives the same child, and so does ``folder``, which is what
    ``kitfs unpack`` wrote of the parent with the same edit. What the child unpacks to is that, in ``unpacked``; but for
    paths that begin as ``without`` says.
    """

    def do(reference: str, edit: Callable[[Path], None], without: tuple[str, ...] = ()) -> Any:
        done = []
        commit("unpack", reference, "-d", tmp_path / "folder")
        staging = edit_mounted(
            reference, edit, lambda place: done.append(commit("commit", place, "child:a", "-m", "why", "--force"))
        )
        edit(tmp_path / "folder")
        done.append(commit("commit", staging, "child:b", "-m", "why", "--force"))
        folder = ["commit", tmp_path / "folder", "child:c", "-m", "why", "--force", "--parent", reference]
        done.append(commit(*folder))
        assert len({one["digest"] for one in done}) == 1
        if done[0]["committed"]:
            commit("unpack", "child:a", "-d", tmp_path / "unpacked")
            unpacked, expected = _read_tree(tmp_path / "unpacked"), _read_tree(tmp_path / "folder")
            assert _keep(unpacked, without) == _keep(expected, without)
        return done[0]

    return do


def _keep(tree: dict[str, tuple[int, bytes | None]], without: tuple[str, ...]) -> dict[str, tuple[int, bytes | None]]:
    """A tree but for what no layer has: the Kitfile, which is in the config, and ``.kitignore``; and some."""
    left_out = ("Kitfile", "kitfile", ".kitfile", ".kitignore", *without)
    return {path: entry for path, entry in tree.items() if not path.startswith(left_out)}


def _read_tree(top: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        str(path.relative_to(top)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes() if path.is_file() else None)
        for path in top.rglob("*")
    }


@pytest.fixture
def read_tree() -> Callable[[Path], dict[str, tuple[int, bytes | None]]]:
    """Reads a tree: mode and bytes by path, None for a directory's bytes."""
    return _read_tree


def _run_kit(home: Path, *arguments: object) -> str:
    command = [os.environ["KITFS_TEST_KIT"], *map(str, arguments)]
    environment = os.environ | {"KITOPS_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def kit() -> Callable[..., str] | None:
    """Runs the kit of ``KITFS_TEST_KIT`` on a home of it, ``(home, *arguments)``; None without one."""
    return _run_kit if os.environ.get("KITFS_TEST_KIT") else None
