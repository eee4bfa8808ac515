"""A store after a kill, a failed call or a short write, at every kind of call that writes (I1 to I6)."""

import shutil
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.store.store import Store

CHILD = Path(__file__).with_name("store_child.py")
REPOSITORY = "localhost/myllm"
FAILING_CALLS = (
    "fsync",
    "fdatasync",
    "write",
    "pwrite64",
    "pwritev",
    "writev",
    "rename",
    "renameat2",
    "link",
    "linkat",
    "fchmod",
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A store before the work, to be copied: (home, tags by name)."""
    import subprocess
    import sys

    home = tmp_path_factory.mktemp("prepared") / "home"
    subprocess.run([sys.executable, "-B", CHILD, "prepare", home], check=True)
    with Store.open(home) as store:
        return home, {tag: record.manifest for _, tag, record in store.iter_tags()}


@pytest.fixture
def copy(prepared, tmp_path):
    """Makes copies of the prepared store."""
    made = []

    def make():
        home = tmp_path / f"home{len(made)}"
        made.append(home)
        shutil.copytree(prepared[0], home)
        shutil.copy(prepared[0].with_name("home-source"), home.with_name(home.name + "-source"))
        return home

    return make


@pytest.fixture
def new_tags(strace, copy, python, assert_holds):
    """The tags after work that nothing disturbed, and how many writing calls it makes."""
    home = copy()
    counts = strace.count([*python, CHILD, "work", home])
    return by_tag(assert_holds(home)), counts


def by_tag(tags):
    return {tag: manifest for (_, tag), manifest in tags.items()}


def assert_old_or_new(tags, old, new, acknowledged):
    """Each step is there whole or not at all, and is there when it was acknowledged (I1, I3)."""
    moved = {"new", "moved"}
    after_kit = {**old, **{tag: new[tag] for tag in moved}}
    states = {"": old, "done kit": after_kit, "done removed": new}
    assert tags in states.values()
    for line, state in states.items():
        if line and line in acknowledged:
            assert tags in list(states.values())[list(states.values()).index(state) :]


def look_and_try_again(home, old, new, outcome, strace, python, assert_holds):
    """Check the store after a fault, then do the work again: it succeeds, with the same digests (I6)."""
    tags = by_tag(assert_holds(home))
    assert_old_or_new(tags, old, new, outcome.stdout.splitlines())
    strace.plain([*python, CHILD, "work", home])
    assert by_tag(assert_holds(home)) == new


def test_store_survives_a_kill_at_any_writing_call(strace, copy, prepared, new_tags, points, python, assert_holds):
    """Killed before any call that writes: every step is whole or absent, acknowledged ones are there."""
    new, counts = new_tags
    assert sum(counts.values()) > 40
    for name, number in points(counts):
        home = copy()
        outcome = strace.run([*python, CHILD, "work", home], name, number, "signal=KILL")
        assert outcome.returncode in (-9, 137), (name, number, outcome)
        look_and_try_again(home, prepared[1], new, outcome, strace, python, assert_holds)


@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC"])
def test_failed_call_is_a_named_error(strace, copy, prepared, new_tags, points, python, assert_holds, fault):
    """A call that fails gives one named error, nothing partial, and the work succeeds when tried again."""
    new, counts = new_tags
    for name, number in points(counts, FAILING_CALLS):
        home = copy()
        outcome = strace.run([*python, CHILD, "work", home], name, number, fault)
        assert outcome.returncode in (0, 10), (name, number, outcome)
        assert "Traceback" not in outcome.stderr
        assert outcome.returncode == 10 or name in ("write", "linkat"), (name, number, outcome)
        look_and_try_again(home, prepared[1], new, outcome, strace, python, assert_holds)


def test_short_write_is_a_named_error(strace, copy, prepared, new_tags, points, python, assert_holds):
    """A write that takes one byte gives one named error, nothing partial, and succeeds when tried again."""
    new, counts = new_tags
    for name, number in points(counts, ("write", "pwrite64", "pwritev", "writev")):
        home = copy()
        outcome = strace.run([*python, CHILD, "work", home], name, number, "retval=1")
        assert outcome.returncode in (0, 10), (name, number, outcome)
        assert "Traceback" not in outcome.stderr
        look_and_try_again(home, prepared[1], new, outcome, strace, python, assert_holds)


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_store_survives_a_fault_while_it_splits(strace, copy, prepared, points, python, assert_holds, fault):
    """Killed, or failed, at any call that writes a split layer: it is whole or absent, and comes the next time."""
    counts = strace.count([*python, CHILD, "split", copy()])
    for name, number in points(counts, FAILING_CALLS):
        home = copy()
        outcome = strace.run([*python, CHILD, "split", home], name, number, fault)
        assert "Traceback" not in outcome.stderr
        tags = by_tag(assert_holds(home))
        assert tags.items() >= prepared[1].items()
        assert "split" in tags or "done split" not in outcome.stdout
        strace.plain([*python, CHILD, "split", home])
        assert "split" in by_tag(assert_holds(home))


def test_store_survives_a_killed_collection(strace, copy, prepared, new_tags, points, python, assert_holds):
    """GC killed before any of its calls: nothing that a tag leads to is missing, and the next GC finishes."""
    old = prepared[1]
    counts = strace.count([*python, CHILD, "gc", copy()])
    for name, number in points(counts):
        home = copy()
        outcome = strace.run([*python, CHILD, "gc", home], name, number, "signal=KILL")
        assert outcome.returncode in (-9, 137), (name, number, outcome)
        assert by_tag(assert_holds(home)) == old


def test_store_survives_a_killed_eviction(strace, copy, points, python, assert_holds):
    """Killed before any of its calls: the member is there, or its file has no record and goes with the next GC."""

    def work():  # anew each time: a copy of a member is not the file that was stamped
        home = copy()
        strace.plain([*python, CHILD, "work", home])
        return home

    tags = assert_holds(work())
    member = Digest.of(b"new 0" * 1000)
    counts = strace.count([*python, CHILD, "evict", work()])
    assert counts["rename"] >= 1
    for name, number in points(counts):
        home = work()
        outcome = strace.run([*python, CHILD, "evict", home], name, number, "signal=KILL")
        assert outcome.returncode in (-9, 137), (name, number, outcome)
        with Store.open(home) as store:
            assert store.find_member(member) is None or store.layout.member(member).exists()
        assert assert_holds(home) == tags


def test_new_store_survives_a_kill(strace, tmp_path, points, python, assert_holds):
    """A store whose making was killed at any call is made whole by the next opening."""
    counts = strace.count([*python, CHILD, "gc", tmp_path / "first"])
    for name, number in points(counts):
        home = tmp_path / f"{name}-{number}"
        strace.run([*python, CHILD, "gc", home], name, number, "signal=KILL")
        assert assert_holds(home) == {}
