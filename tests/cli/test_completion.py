"""``kitfs completion``: what a shell makes of a line when the tabulator is pressed, in a real bash on a terminal."""

import os
import pty
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from kitfs.cli.completing import ARGUMENTS
from kitfs.cli.main import VERBS, cli
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

GZIP = "sha256:54a4c05214183b267e3b0579af3796ea3f41d88554315a8bbe7757808ae8aba8"
START = "from kitfs.cli.main import main; main()"


class Bash:
    """An interactive bash without anybody's settings, on a terminal of its own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.terminal, inner = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"], stdin=inner, stdout=inner, stderr=inner,
            cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        self.said = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until ``pattern`` has been said, and forget all up to its end."""
        while (match := re.search(pattern, self.said)) is None:
            assert select.select([self.terminal], [], [], 120)[0], f"bash is silent after {self.said!r}"
            self.said += os.read(self.terminal, 65536).decode(errors="replace")
        self.said = self.said[match.end() :]
        return match

    def run(self, line: str) -> None:
        """Run one line and wait until it is done."""
        os.write(self.terminal, f"{line}; echo do''ne\n".encode())
        self.wait_for(r"\ndone\r\n")

    def complete(self, line: str) -> str:
        """The line after the tabulator was pressed at its end; it is not run."""
        os.write(self.terminal, f"{line}\t\x01printf '<%s>' '\x05'\n".encode())
        return self.wait_for(r"\n<(.*?)>").group(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture
def bash(filled: object, tmp_path: Path) -> Iterator[Bash]:
    """A bash with kitfs in its path and its completion loaded, over the ModelKits of kit 1.7.0."""
    command = tmp_path / "bin" / "kitfs"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c '{START}' \"$@\"\n")
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    python_path = os.pathsep.join(entry for entry in sys.path if entry)
    shell = Bash(os.environ | {"PATH": path, "PS1": "$ ", "TERM": "dumb", "PYTHONPATH": python_path}, tmp_path)
    try:
        shell.run("bind 'set enable-bracketed-paste off'; source <(kitfs completion bash)")
        yield shell
    finally:
        shell.close()


def test_bash_completes(bash: Bash, tmp_path: Path):
    """Verbs, options, choices, references with their colons and at signs, and directories are completed in bash."""
    (tmp_path / "here it is").mkdir()
    with Store.open(tmp_path / "home") as store:
        kit = resolve(store, parse_reference("myllm"))
        create_staging(store, tmp_path / "home/staging/draft", kit, overlay="overlay", uid=0, gid=0)
    lines = {
        "kitfs insp": "kitfs inspect ",
        "kitfs list --filt": "kitfs list --filter ",
        "kitfs list --format j": "kitfs list --format json ",
        "kitfs list --format=j": "kitfs list --format=json ",
        "kitfs info my": "kitfs info myllm:",
        "kitfs info myllm:3.1.4-g": "kitfs info myllm:3.1.4-gzip ",
        "kitfs tag one-file:1 wh": "kitfs tag one-file:1 whole:dot ",
        "kitfs list my": "kitfs list myllm ",
        "kitfs verify registry.example.com:8080/ac": "kitfs verify registry.example.com:8080/acme/team_a/tuned:1 ",
        "kitfs info myllm@sha256:54": f"kitfs info myllm@{GZIP} ",
        "kitfs info sha256:54": f"kitfs info {GZIP} ",
        "kitfs -q remove empty": "kitfs -q remove empty:0 ",
        "kitfs mount whole:dot here": "kitfs mount whole:dot here\\ it\\ is/",
        "kitfs info nothing": "kitfs info nothing",
        "kitfs log whole:d": "kitfs log whole:dot ",
        "kitfs staging remove dr": "kitfs staging remove draft ",
        "kitfs staging remove he": "kitfs staging remove here\\ it\\ is/",
        f"kitfs --home {tmp_path}/absent info my": f"kitfs --home {tmp_path}/absent info my",
    }
    assert {line: bash.complete(line) for line in lines} == lines


def test_every_argument_has_a_type():
    """Each argument of each verb is a path, a choice, or in the table of what is completed; the table has no other."""
    context = click.Context(cli)
    plain = {
        (name, parameter.name)
        for name in VERBS
        for parameter in cli.get_command(context, name).params
        if isinstance(parameter, click.Argument) and parameter.type.name == "text"
    }
    assert plain - set(ARGUMENTS) == {("import", "references"), ("prefetch", "paths")}
    assert set(ARGUMENTS) <= plain


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(filled: Callable[..., object], shell: str, monkeypatch: pytest.MonkeyPatch):
    """The scripts for zsh and fish ask kitfs, and are answered with references."""
    assert f"_KITFS_COMPLETE={shell}_complete" in filled("completion", shell).out
    monkeypatch.setenv("_KITFS_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "kitfs info one")
    monkeypatch.setenv("COMP_CWORD", "2" if shell == "zsh" else "one")
    done = filled()
    assert done.code == 0 and "one-file:1" in done.out


def test_unknown_shell(kitfs: Callable[..., object]):
    """A shell that has no script is a usage error that names those that have one."""
    done = kitfs("completion", "tcsh")
    assert done.code == 2 and "'bash'" in done.err
