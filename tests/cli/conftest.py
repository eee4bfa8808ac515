"""One command line in this process, on a store of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kitfs.cli.main import run
from kitfs.store.fsck import check
from kitfs.store.store import Store


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


@pytest.fixture
def kitfs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run a verb; no traceback is ever printed."""
    monkeypatch.setenv("KITFS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KITOPS_HOME", str(tmp_path / "kitops"))

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def filled(kitfs: Callable[..., Done], shared_fixtures: Path, tmp_path: Path):
    """A store with the ModelKits of kit 1.7.0; a check of it finds nothing in the end."""
    assert kitfs("import", shared_fixtures / "kit-v1.7.0", "--copy", "--progress", "none").code == 0
    yield kitfs
    with Store.open(tmp_path / "home") as store:
        assert check(store).problems == []
