"""``kitfs unpack`` that is killed at any moment: whole files under their names, and the same command goes on."""

import os
from pathlib import Path

from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

CALLS = ("mkdir", "mkdirat", "pwrite64", "copy_file_range", "fchmod", "renameat2", "renameat", "rename", "linkat")
UNPACK = "import sys; from kitfs.cli.main import main; main()"


def _read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_unpack_leaves_whole_files_only(strace, points, python, tmp_path, shared_fixtures, monkeypatch):
    """What has its name has its bytes; the rest is named ``.kitfs-…`` and nobody's; with -i the command finishes."""
    monkeypatch.setenv("KITFS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KITOPS_HOME", os.devnull)
    source = open_source(shared_fixtures / "kit-v1.7.0")
    with Store.open(tmp_path / "home") as store:
        import_source(store, source, copy=True)
    source.close()
    command = [*python, "-c", UNPACK, "unpack", "myllm:3.1.4-gzip", "-d"]
    counts = strace.count([*command, tmp_path / "whole"], CALLS)
    whole = _read(tmp_path / "whole")
    chosen = points(counts, CALLS)
    assert whole and len(chosen) >= 3
    killed = 0
    for call, number in chosen:
        target = tmp_path / f"{call}-{number}"
        killed += strace.run([*command, target], call, number, "signal=KILL").returncode != 0
        found = _read(target) if target.exists() else {}
        named = {name for name in found if not Path(name).name.startswith(".kitfs-")}
        assert {name: found[name] for name in named} == {name: whole[name] for name in named}
        strace.plain([*command, target, "-i"])
        assert whole.items() <= _read(target).items()
    assert killed >= len(chosen) // 2  # strace counts per thread, and other threads may have made the call
