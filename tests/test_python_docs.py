"""The Python of ``docs/python.md`` runs as it stands there."""

import re
from pathlib import Path

import pytest

from kitfs.cli.main import run
from kitfs.store.fsck import check
from kitfs.store.store import Store

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def test_page_has_examples():
    """The examples are found, each one a program of its own."""
    assert len(EXAMPLES) >= 4
    assert all("import kitfs\n" in example for example in EXAMPLES)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, shared_fixtures, store_home, tmp_path, monkeypatch):
    """Each example does what it says on a store with kit 1.7.0's ModelKits and leaves it sound."""
    monkeypatch.setenv("KITFS_HOME", str(store_home))
    monkeypatch.chdir(tmp_path)
    assert run(["import", str(shared_fixtures / "kit-v1.7.0"), "--copy", "--progress", "none"]) == 0
    assert run(["unpack", "myllm:3.1.4", "-d", "work", "-q", "--progress", "none"]) == 0
    exec(compile(EXAMPLES[number], f"{PAGE.name}, example {number + 1}", "exec"), {"__name__": "__main__"})
    with Store.open(store_home) as store:
        assert check(store).problems == []
