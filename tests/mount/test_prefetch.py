"""``kitfs prefetch`` of mounts, quota and policies, through the real command line and real mounts."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kitfs.store.fsck import check
from kitfs.store.store import Store

pytestmark = pytest.mark.mount

STATE = "user.kitfs.state"
FILES = {f"w{number}.bin": random.Random(number).randbytes(3 << 19) for number in range(4)}
"""Four files of 1.5 MiB, in the folder ``weights``."""


@pytest.fixture
def kits(machine, make_layout):
    """The machine with ``gzip:1`` and ``zstd:1``, and settings of its own; a check finds nothing in the end."""
    for compression in ("gzip", "zstd"):
        machine.run("import", make_layout(compression, compression, FILES))
    machine.environment["XDG_CONFIG_HOME"] = str(machine.folder / "config")
    yield machine
    with Store.open(machine.home) as store:
        assert not check(store, read_data=True).problems


def _members(machine):
    return {path.name for path in (machine.home / "members/sha256").glob("*/*")}


def _hex(name):
    return hashlib.sha256(FILES[name]).hexdigest()


ALL = {_hex(name) for name in FILES}


def _report(done):
    return {
        name: [Path(member["path"]).name for member in members] for name, members in json.loads(done.stdout).items()
    }


def test_prefetch_of_a_mount_and_paths_in_it(kits):
    """A mount point and paths relative to it, or absolute; files that were lazy are native in the live mount."""
    place = kits.mount("mnt", "gzip:1")
    assert os.getxattr(place / "weights/w1.bin", STATE) == b"lazy"
    done = kits.run("prefetch", place, "weights/w1.bin", place / "weights/w2.bin", "--format", "json")
    report = _report(done)
    assert sorted(report["made"] + report["present"]) == ["w1.bin", "w2.bin"]
    assert os.getxattr(place / "weights/w1.bin", STATE) == b"native"
    for name, data in FILES.items():
        assert (place / "weights" / name).read_bytes() == data


def test_prefetch_of_a_mount_of_the_whole_store(kits):
    """A path leads to a ModelKit and into it; a folder of tags means them all."""
    place = kits.folder / "all"
    place.mkdir()
    kits.run("mount", "--all", place)
    assert _report(kits.run("prefetch", place, "gzip/1/weights/w0.bin", "--format", "json"))["made"] == ["w0.bin"]
    kits.run("prefetch", place, "zstd")
    assert _members(kits) == ALL
    assert "nowhere/1" in kits.run("prefetch", place, "nowhere/1", status=3).stderr


def test_a_file_that_is_open_through_a_mount_stays_native(kits):
    """A command that needs room does not take it; one byte was read, so the worker has it open."""
    kits.run("prefetch", "zstd:1")
    place = kits.mount("mnt", "zstd:1")
    with open(place / "weights/w0.bin", "rb", buffering=0) as file:
        file.read(1)
        kits.environment["KITFS_CACHE_SIZE_MAX"] = "2M"
        done = kits.run("prefetch", "gzip:1", "weights/w1.bin", "--format", "json")
        assert _report(done)["present"] == ["w1.bin"]
        with Store.open(kits.home) as store:
            store.quota = store.quota.__class__(size=2 << 20)
            assert store.make_room(0)
        assert _members(kits) == {_hex("w0.bin")}
        assert os.getxattr(place / "weights/w0.bin", STATE) == b"native"
        assert file.read() == FILES["w0.bin"][1:]
    assert (place / "weights/w3.bin").read_bytes() == FILES["w3.bin"]


def test_an_interrupted_prefetch_is_130_and_shows_nothing_partial(kits, make_layout):
    """Ctrl-C after the first file: no member that is not whole, no lease, and the next run makes the rest."""
    large = {f"x{number}.bin": random.Random(number).randbytes(1 << 20) * 24 for number in range(4)}
    kits.run("import", make_layout("large", "zstd", large))
    command = kits.command("prefetch", "large:1", "--progress", "plain")
    with subprocess.Popen(command, env=kits.environment, stderr=subprocess.PIPE, text=True) as child:
        child.stderr.readline()
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(timeout=60) in (0, 130)
    assert "Traceback" not in rest
    with Store.open(kits.home) as store:
        assert not check(store, read_data=True).problems
        assert list(store.layout.leases.iterdir()) == []
        assert list(store.layout.ingest.iterdir()) == []
    kits.run("prefetch", "large:1")
    assert len(_members(kits)) == 4


def test_never_writes_no_member_but_for_layers_that_can_not_be_read_otherwise(kits):
    """gzip is read by spans; a zstd layer is decoded into files all the same, or it could not be read."""
    place = kits.mount("mnt", "gzip:1", "-o", "materialise=never")
    for name, data in FILES.items():
        assert (place / "weights" / name).read_bytes() == data
        assert os.getxattr(place / "weights" / name, STATE) == b"lazy"
    assert _members(kits) == set()
    place = kits.mount("other", "zstd:1", "-o", "materialise=never")
    assert (place / "weights/w0.bin").read_bytes() == FILES["w0.bin"]
    assert _hex("w0.bin") in _members(kits)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_always_makes_a_file_of_what_is_opened_without_a_read(kits, compression):
    """Opening is enough; asking for the state is not."""
    place = kits.mount("mnt", f"{compression}:1", "-o", "materialise=always")
    assert os.getxattr(place / "weights/w0.bin", STATE) == b"lazy"
    deadline_s = time.monotonic() + 60
    with open(place / "weights/w0.bin", "rb"):
        while os.getxattr(place / "weights/w0.bin", STATE) != b"native":
            assert time.monotonic() < deadline_s
            kits.states()
    assert _hex("w0.bin") in _members(kits)
    if compression == "gzip":
        assert _members(kits) == {_hex("w0.bin")}


def test_ps_tells_the_share_of_bytes_and_the_state_whether_or_not_a_file_was_opened(kits):
    """One of four files of a size is a quarter; it takes part only when its file is there."""
    kits.mount("mnt", "gzip:1")
    assert [(state.state, state.native) for state in kits.states()] == [("lazy", 0)]
    kits.run("prefetch", "gzip:1", "weights/w1.bin")
    assert [(state.state, state.native) for state in kits.states()] == [("partial", 0.25)]
    kits.run("prefetch", "gzip:1")
    assert [(state.state, state.native) for state in kits.states()] == [("native", 1)]
    assert "100%" in kits.run("ps").stdout


def test_a_session_keeps_its_policy_and_equal_trees_have_equal_inodes(kits):
    """Policy and quota come from the configuration unless a flag says otherwise, and change no inode number."""
    config = kits.folder / "config/kitfs/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[cache]\nmaterialise = "never"\nsize_max = "1G"\n')
    first = kits.mount("first", "gzip:1")
    kits.mount("second", "gzip:1", "-o", "materialise=always,nometa")
    third = kits.mount("third", "gzip:1", "-o", "materialise=auto")
    options = [json.loads(path.read_text())["options"] for path in kits.sessions()]
    assert sorted(option["materialise"] for option in options) == ["always", "auto", "never"]
    assert {option["size_max"] for option in options} == {"1G"}
    assert (first / "weights").stat().st_ino == (third / "weights").stat().st_ino
