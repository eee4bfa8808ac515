"""``kitfs prefetch`` of a reference, and its quota: no mount and no daemon."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.store.fsck import check
from kitfs.store.store import Store

FILES = {f"w{number}.bin": random.Random(number).randbytes(3 << 18) for number in range(4)}
"""Four files of 0.75 MiB, in the folder ``weights``."""


@pytest.fixture
def prefetch(kitfs, make_layout, tmp_path, monkeypatch):
    """Runs the verb; the store has ``gzip:1``, ``zstd:1``, ``none:1``, and a check of it finds nothing in the end."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for compression in ("gzip", "zstd", "none"):
        assert kitfs("import", make_layout(compression, compression, FILES)).code == 0
    yield lambda *arguments: kitfs("prefetch", *arguments)
    with Store.open(tmp_path / "home") as store:
        assert not check(store, read_data=True).problems


@pytest.fixture
def members(tmp_path):
    """The names of the files under members/."""
    return lambda: {path.name for path in (tmp_path / "home/members/sha256").glob("*/*")}


def _hex(name):
    return hashlib.sha256(FILES[name]).hexdigest()


ALL = {_hex(name) for name in FILES}


def _report(done):
    return {name: [Path(member["path"]).name for member in members] for name, members in done.json.items()}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_every_file_of_a_reference_is_made(prefetch, members, compression):
    """All of a ModelKit; what is there already is said to be."""
    done = prefetch(f"{compression}:1", "--format", "json")
    assert done.code == 0
    assert _report(done) == {"made": sorted(FILES), "present": [], "inPlace": [], "unfit": []}
    assert members() == ALL
    assert _report(prefetch(f"{compression}:1", "--format", "json"))["present"] == sorted(FILES)


def test_it_says_what_it_did_a_line_for_each_file_and_a_summary(prefetch):
    """Not on a terminal: lines on standard error, the result on standard output; ids only on demand."""
    done = prefetch("gzip:1", "--progress", "plain")
    assert done.out == "Materialised 4 files (3.0 MiB)\n"
    assert done.err.splitlines() == [f"weights/{name}  768.0 KiB" for name in sorted(FILES)]
    assert prefetch("gzip:1").out == "Materialised 0 files (0 B); 4 files (3.0 MiB) there before\n"
    assert prefetch("gzip:1", "-q").out == ""


def test_a_plain_layer_needs_no_files(prefetch, members):
    """Its members are read from the blob, or are files already."""
    done = prefetch("none:1", "--format", "json")
    assert done.code == 0
    report = _report(done)
    assert sorted(report["inPlace"] + report["present"] + report["made"]) == sorted(FILES)


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("weights/w1.bin",), ["w1.bin"]),
        (("./weights//w1.bin", "weights/w1.bin"), ["w1.bin"]),
        (("weights",), sorted(FILES)),
        (("weights/",), sorted(FILES)),
        (("model",), sorted(FILES)),
        (("Kitfile", ".kitfs"), []),
    ],
)
def test_paths_choose(prefetch, paths, named):
    """Files, folders with all below, the link ``model``; what is made up needs nothing."""
    report = _report(prefetch("zstd:1", *paths, "--format", "json"))
    assert sorted(report["made"] + report["present"]) == named


@pytest.mark.parametrize(
    ("what", "path", "named"),
    [
        ("nothere:1", "weights/w0.bin", "nothere:1"),
        ("gzip:1", "weights/w9.bin", "weights/w9.bin"),
        ("gzip:1", "../w0.bin", "../w0.bin"),
        ("gzip:1", "weights/w0.bin/x", "w0.bin/x"),
        ("/", "weights/w0.bin", "/"),
    ],
)
def test_what_is_not_there_is_not_found(prefetch, members, what, path, named):
    """Exit code 3, the thing named, and nothing materialised, not even the paths that are there."""
    done = prefetch(what, path, "weights/w0.bin")
    assert done.code == 3
    assert named in done.err
    assert members() == set()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_does_not_fit_is_named(prefetch, members, monkeypatch, compression):
    """Exit code 1 and figures; nothing is made in vain where it is known before."""
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "500K")
    done = prefetch(f"{compression}:1", "--format", "json")
    assert done.code == 1
    assert _report(done)["unfit"] == sorted(FILES)
    assert "4 files of 3145728 bytes did not fit" in done.err
    assert "cache.size_max" in done.err
    assert members() == set()


def test_what_is_open_is_not_evicted(prefetch, members, monkeypatch, make_layout, kitfs, tmp_path):
    """Whoever has it open; when it is closed it goes."""
    other = random.Random(9).randbytes(2 << 20)
    assert kitfs("import", make_layout("other", "zstd", {"x.bin": other})).code == 0
    assert prefetch("zstd:1").code == 0
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "3M")
    with Store.open(tmp_path / "home") as store:
        opened = [store.open_member(Digest(digest))[0] for digest in sorted(ALL)]
        done = prefetch("other:1")
        assert done.code == 1
        assert "1 file of 2097152 bytes did not fit" in done.err
        assert members() == ALL
        for fd in opened:
            os.close(fd)
    assert prefetch("other:1").code == 0
    assert len(members()) == 2  # one of the four fits beside it


def test_files_of_one_command_do_not_evict_each_other(prefetch, members, monkeypatch):
    """What fits is made and stays, the rest is named."""
    assert prefetch("gzip:1", "weights/w0.bin").code == 0
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "3M")
    assert prefetch("gzip:1").code == 0
    assert members() == ALL


def test_a_setting_that_is_none_is_refused(prefetch, monkeypatch):
    """As for a mount."""
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "much")
    done = prefetch("gzip:1")
    assert done.code == 2
    assert "KITFS_CACHE_SIZE_MAX" in done.err


def test_many_files_are_one_step(kitfs, make_layout, members, tmp_path):
    """A folder of hundreds gets one line, not one each."""
    files = {f"part{number}.txt": b"%d" % number * 10 for number in range(30)}
    assert kitfs("import", make_layout("many", "gzip", files)).code == 0
    done = kitfs("prefetch", "many:1", "--progress", "plain")
    assert done.err == "weights (30 files)  500 B\n"
    assert done.out == "Materialised 30 files (500 B)\n"
    assert len(members()) == 30
