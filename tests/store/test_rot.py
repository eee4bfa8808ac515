"""Flipped bits in the index and in tags.log: named errors or right answers, never wrong ones."""

import os
import random
import shutil
import signal

import pytest

from kitfs.errors import KitfsError
from kitfs.store.errors import IndexDisagrees
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.store import Store

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
FLIPS = 5000 if CAMPAIGN else 60

RIGHT, NAMED, ABSENT, WRONG, UNNAMED, SWEPT = range(6)


def read_everything(store):
    """All that the index says, as one value."""
    tags = [(repository, tag, record.manifest) for repository, tag, record in store.iter_tags()]
    manifests = list(store.iter_manifests())
    blobs = [(digest, record.size, record.form) for digest, record in store.iter_blobs()]
    tocs = [(layer, store.get_toc(layer), store.span_checksums(layer)) for _, kit in manifests for layer in kit.layers]
    return tags, manifests, blobs, tocs


def look(home, expected):
    """What a process makes of a damaged store; GC may sweep nothing that was kept before."""
    try:
        with Store.open(home) as store:
            found = read_everything(store)
            files = sorted(store.layout.content("blobs").glob("*/*"))
            try:
                gc(store)
            except KitfsError as error:
                verdict = NAMED if not isinstance(error, IndexDisagrees) or found == expected else ABSENT
            else:
                verdict = RIGHT if found == expected else ABSENT
            if sorted(store.layout.content("blobs").glob("*/*")) != files:
                return SWEPT
            if any(item not in known for part, known in zip(found, expected, strict=True) for item in part):
                return WRONG
            check(store, read_data=True)
            return verdict
    except KitfsError:
        return NAMED
    except BaseException:  # noqa: BLE001  # the verdict is what is asked for
        return UNNAMED


def in_child(home, expected):
    """The verdict of a child, or the signal that killed it (a damaged page can be SIGBUS: one process's death)."""
    pid = os.fork()
    if pid == 0:
        os._exit(look(home, expected))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def rotten(tmp_path, build_store):
    """A store with ten kits, its home, and all that its index says."""
    home = tmp_path / "home"
    with Store.open(home) as store:
        build = build_store(store)
        for number in range(10):
            build.kit(f"kit{number}", [b"layer%d" % number], tags=[("localhost/myllm", str(number))])
        expected = read_everything(store)
    return home, expected


@pytest.mark.parametrize("name", ["index/data.mdb", "tags.log"])
def test_flipped_bit_gives_no_wrong_answer_and_sweeps_nothing(rotten, name):
    """A bit flipped anywhere: right answers or a named error, and no blob that a tag kept is swept."""
    home, expected = rotten
    path = home / name
    original = path.read_bytes()
    backup = home.with_name("backup")
    shutil.copytree(home, backup)
    generator = random.Random(20240320)
    seen = {}
    for _ in range(FLIPS):
        bit = generator.randrange(len(original) * 8)
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        verdict = in_child(home, expected)
        seen[verdict] = seen.get(verdict, 0) + 1
        assert verdict in (RIGHT, NAMED, ABSENT, -signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT), (bit, verdict)
        for other in ("index/data.mdb", "tags.log"):
            shutil.copyfile(backup / other, home / other)
    assert seen.get(RIGHT, 0) + seen.get(NAMED, 0) > FLIPS // 2
    with Store.open(home) as store:
        assert read_everything(store) == expected
