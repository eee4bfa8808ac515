"""``kitfs init``: a Kitfile that can be packed, in kit's words."""

import os
import pty
import subprocess
import sys

import pytest


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, its metadata and a readme."""
    path = tmp_path / "folder"
    path.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (path / name).write_text(name)
    return path


KITFILE = """\
manifestVersion: 1.0.0
package:
  name: mine
  description: 'd: e'
  authors: [me]
model:
  name: model
  path: model.safetensors
  parts:
    - path: config.json
docs:
  - path: README.md
    description: Readme file
"""
NAMED = ("--name", "mine", "--desc", "d: e", "--author", "me")


def test_init_writes_and_prints_the_kitfile(kitfs, folder):
    """What is written is printed, then where it is; nothing is asked without a terminal."""
    done = kitfs("init", folder, *NAMED)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"Generated Kitfile:\n\n{KITFILE}\nSaved to path '{folder}/Kitfile'\n"
    assert (folder / "Kitfile").read_text() == KITFILE
    assert sorted(path.name for path in folder.iterdir()) == [
        "Kitfile",
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_an_author_alone(kitfs, folder):
    """Each of name, description and author may be given alone."""
    assert kitfs("init", folder, "--author", "me", "-q").out == f"{folder}/Kitfile\n"
    assert "package:\n  authors: [me]\nmodel:" in (folder / "Kitfile").read_text()


def test_json(kitfs, folder):
    """The JSON form holds the path and the Kitfile."""
    assert kitfs("init", folder, *NAMED, "--format", "json").json == {"path": f"{folder}/Kitfile", "kitfile": KITFILE}


def test_an_existing_kitfile_is_kept(kitfs, folder):
    """Without --force an existing Kitfile is refused and stays as it is; with it, it is replaced."""
    (folder / "Kitfile").write_text("mine")
    done = kitfs("init", folder)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"kitfs: Kitfile already exists at {folder}/Kitfile. Use '--force' to overwrite\n"
    assert (folder / "Kitfile").read_text() == "mine"
    assert kitfs("init", folder, "--force", *NAMED).code == 0
    assert (folder / "Kitfile").read_text() == KITFILE


def test_what_init_writes_is_packed(kitfs, folder):
    """The Kitfile and the folder make a ModelKit with a layer for each section."""
    (folder / "LICENSE").write_text("mine")
    (folder / "run.sh").write_text("true")
    done = kitfs("init", folder)
    assert "unable to determine the license in LICENSE" in done.err
    assert kitfs("pack", folder, "-t", "made:1", "--progress", "none").code == 0
    changes = kitfs("diff", "made:1", "made:1", "--format", "json").json
    kinds = [layer["mediaType"].split(".")[3] for layer in changes["SharedLayers"]]
    assert kinds == ["code", "docs", "docs", "model", "modelpart"]


def test_no_folder(kitfs, tmp_path):
    """A folder that is not there is 3, and is not made."""
    done = kitfs("init", tmp_path / "nope")
    assert (done.code, done.out) == (3, "")
    assert "no such directory" in done.err
    assert not (tmp_path / "nope").exists()


def run_on_terminal(folder, answers: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``kitfs init`` with a terminal for standard input."""
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, answers)
        command = [sys.executable, "-c", "from kitfs.cli.main import main; main()", "init", str(folder), *arguments]
        return subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.close(terminal)
        os.close(keyboard)


def test_on_a_terminal_what_is_not_given_is_asked_for(folder):
    """Name, description and author are asked for on standard error, in kit's words; an empty answer is none."""
    done = run_on_terminal(folder, b" my name \n\n", "--author", "me", "-q")
    assert (done.returncode, done.stdout) == (0, f"{folder}/Kitfile\n")
    assert "Enter a name for the ModelKit: " in done.stderr
    assert "Enter a short description for the ModelKit: " in done.stderr
    assert "author" not in done.stderr
    assert "package:\n  name: my name\n  authors: [me]\nmodel:" in (folder / "Kitfile").read_text()


def test_an_unanswered_question_writes_nothing(folder):
    """The end of input, or an interrupt, at a question leaves no Kitfile."""
    done = run_on_terminal(folder, b"name\n\x04")
    assert done.returncode == 130
    assert not (folder / "Kitfile").exists()
