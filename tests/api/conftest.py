"""Stores with ModelKits, for the Python API to read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.cli.main import run
from kitfs.store.fsck import check
from kitfs.store.store import Store


@pytest.fixture
def import_kits(store_home: Path) -> Iterator[Callable[..., Path]]:
    """Imports what ``kitfs import`` is told to and gives the store's folder; in the end a check finds nothing there."""

    def import_(*arguments: object) -> Path:
        words = ["import", *map(str, arguments), "--progress", "none", "--home", str(store_home), "-q"]
        assert run(words) == 0
        return store_home

    yield import_
    if store_home.exists():
        with Store.open(store_home) as store:
            assert check(store).problems == []


@pytest.fixture
def home(import_kits: Callable[..., Path], shared_fixtures: Path) -> Path:
    """A store with the ModelKits of kit 1.7.0."""
    return import_kits(shared_fixtures / "kit-v1.7.0", "--copy")
