"""A commit that is killed at any moment leaves the old tag or the new ModelKit whole, and can be made again.

One store lives through a whole campaign. Before each round the tag points at the parent and nothing of the child is
there; a process commits over it with ``--force`` and is killed; then the store is checked with all its data, collected,
and the commit made again. By default a part of the rounds runs; all of them with ``KITFS_CAMPAIGN=1``.
"""

import os
import random
import sys
from collections import Counter
from time import monotonic

import pytest

from kitfs.modelkit.derive import DeriveOptions, derive
from kitfs.modelkit.pack import pack
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store

KILLS = 200 if os.environ.get("KITFS_CAMPAIGN") == "1" else 10
CREATED_S = 1_767_225_600
PARENT, CHILD = parse_reference("myllm:1"), parse_reference("myllm:2")
KITFILE = "manifestVersion: 1.0.0\nmodel:\n  path: weights\ndatasets:\n- path: data\ndocs:\n- path: docs\n"
PRELOADED = ("kitfs.cli.committing", "kitfs.modelkit.derive", "kitfs.store.split_ingest", "kitfs.store.change")
COMMAND = [sys.executable, "-c", "from kitfs.cli.main import main; main()"]


class Campaign:
    """One store and one staging directory that live through all rounds."""

    def __init__(self, folder, find_leftovers) -> None:
        self.home, self.work = folder / "home", folder / "work"
        self._find_leftovers = find_leftovers
        rng = random.Random(7)
        source = folder / "source"
        files = {"weights/a.bin": 3_000_000, "weights/b.bin": 2_000_000, "data/rows": 700_000, "docs/README.md": 900}
        for name, size in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(rng.randbytes(size))
        (source / "Kitfile").write_text(KITFILE)
        with Store.open(self.home) as store:
            self.parent = pack(store, source, None, [PARENT, CHILD])
            kit = resolve(store, PARENT)
            staging = create_staging(store, self.work, kit, overlay="overlay", uid=os.getuid(), gid=os.getgid())
            for name, size in {"weights/b.bin": 2_500_000, "docs/README.md": 1000, "docs/new.md": 70_000}.items():
                (staging.upper / name).parent.mkdir(parents=True, exist_ok=True)
                (staging.upper / name).write_bytes(rng.randbytes(size))
            self.child = self._commit(store)
            self._put_back(store)

    def arguments(self):
        return ["--home", str(self.home), "--progress", "none", "commit", str(self.work), str(CHILD), "--force"]

    def _commit(self, store):
        return derive(store, self.work, CHILD, options=DeriveOptions(moves_tag=True, created_s=CREATED_S)).manifest

    def _put_back(self, store):
        with store.lease("put back") as lease:
            change = store.change(lease)
            change.set_tag(CHILD.repository, CHILD.tag, self.parent)
            change.commit()
        gc(store)
        assert store.find_manifest(self.child) is None
        assert self._find_leftovers(store) == []

    def judge(self):
        """Look at the store after a round, commit again, and put everything back: ``old`` or ``new``."""
        with Store.open(self.home) as store:
            assert check(store, read_data=True).problems == []
            tagged = store.get_tag(CHILD.repository, CHILD.tag).manifest
            assert tagged in (self.parent, self.child)
            assert store.get_tag(PARENT.repository, PARENT.tag).manifest == self.parent
            gc(store)
            assert self._find_leftovers(store) == []
            assert self._commit(store) == self.child
            assert store.get_tag(CHILD.repository, CHILD.tag).manifest == self.child
            assert check(store, read_data=True).problems == []
            self._put_back(store)
        return "old" if tagged == self.parent else "new"


@pytest.fixture
def campaign(memory, find_leftovers, monkeypatch):
    """A store with a ModelKit, a staging directory over it, and the time that all commits record."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(CREATED_S))
    return Campaign(memory, find_leftovers)


def test_commit_killed_at_a_random_moment(campaign, victims, kill_at_random):
    """SIGKILL at a random moment: the old tag or the new one, whole; the same commit then makes the same ModelKit."""
    kill_at_random(victims(preloaded=PRELOADED), campaign, KILLS)


def test_commit_killed_at_its_calls(campaign, strace, points, report):
    """SIGKILL at calls that write, in whichever thread comes to so many of them first: likewise."""
    command = [*COMMAND, *campaign.arguments()]
    counts = strace.count(command)
    assert campaign.judge() == "new"
    outcomes, started_s = Counter(), monotonic()
    for name, number in points(counts):
        outcome = strace.run(command, name, number, "signal=KILL")
        state = campaign.judge()
        assert outcome.returncode != 0 or state == "new"
        outcomes[name, state if outcome.returncode else "not met"] += 1
    assert {state for _, state in outcomes} >= {"old", "new"}
    report("kills at calls", outcomes, started_s)
