"""One command line in this process, on a store of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitfs.store.fsck import check
from kitfs.store.store import Store


@pytest.fixture
def kitfs(tmp_path: Path, run_verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a verb on a store of its own; its exit code, output and errors."""
    monkeypatch.setenv("KITFS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KITOPS_HOME", str(tmp_path / "kitops"))
    return run_verb


@pytest.fixture
def filled(kitfs: Callable[..., Any], shared_fixtures: Path, tmp_path: Path):
    """A store with the ModelKits of kit 1.7.0; a check of it finds nothing in the end."""
    assert kitfs("import", shared_fixtures / "kit-v1.7.0", "--copy", "--progress", "none").code == 0
    yield kitfs
    with Store.open(tmp_path / "home") as store:
        assert check(store).problems == []
