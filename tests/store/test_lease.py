"""Leases: alive while their process is, and noted before anything relies on them."""

import os
import signal
import threading

import pytest

from kitfs.digest import Digest
from kitfs.store import gate
from kitfs.store.errors import BlobNotFound, StoreWriteFailed
from kitfs.store.gc import gc
from kitfs.store.lease import read_held
from kitfs.store.store import Store


def in_child(work):
    """Run ``work(ready, wait)`` in a forked child; returns its pid once it has called ``ready``."""
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda: os.write(ready_w, b"x"), signal.pause)
        finally:
            os._exit(1)
    os.close(ready_w)
    assert os.read(ready_r, 1) == b"x"
    os.close(ready_r)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_lease_of_a_killed_process_ends(store, build):
    """What a process holds is kept while it lives and goes after it was killed."""
    manifest = build.kit(tags=[])

    def work(ready, wait):
        with Store.open(store.home) as own, own.lease("child") as lease:
            lease.hold(manifest)
            ready()
            wait()

    with store.lease("meanwhile") as lease:
        lease.hold(manifest)
        pid = in_child(work)
    gc(store)
    assert store.find_manifest(manifest) is not None
    kill(pid)
    gc(store)
    assert store.find_manifest(manifest) is None
    assert list(store.layout.leases.iterdir()) == []


def test_ingest_of_a_killed_process_goes(store):
    """What a killed process was writing is removed by GC, and not before it is dead."""

    def work(ready, wait):
        with Store.open(store.home) as own, own.lease("child") as lease, own.ingest(lease) as ingest:
            ingest.write(b"half")
            ready()
            wait()

    pid = in_child(work)
    gc(store)
    assert len(list(store.layout.ingest.iterdir())) == 1
    kill(pid)
    report = gc(store)
    assert {victim.kind for victim in report.victims} == {"ingest", "lease"}
    assert list(store.layout.ingest.iterdir()) == []


def test_note_is_written_once_and_before_it_counts(store, build):
    """A digest held twice is noted once; closing removes the file."""
    manifest = build.kit()
    lease = store.lease("test")
    lease.hold(manifest)
    lease.hold(manifest)
    assert read_held(lease.path) == [manifest]
    assert gate.is_alive(lease.path)
    lease.close()
    assert not lease.path.exists()
    assert read_held(lease.path) == []


def test_torn_note_does_not_swallow_the_next(store, build):
    """After a note that was cut short by a full disk, the next one is read whole."""
    manifest = build.kit()
    with store.lease("test") as lease:
        with open(lease.path, "ab") as file:
            file.write(b"\nsha256:1234")
        lease.hold(manifest)
        assert read_held(lease.path) == [manifest]


def test_failed_note_holds_nothing(store, build, monkeypatch):
    """When the note can not be written, holding fails and a later try works."""
    manifest = build.kit()
    with store.lease("test") as lease:
        monkeypatch.setattr(os, "write", lambda fd, data: 3)
        with pytest.raises(StoreWriteFailed):
            lease.hold(manifest)
        monkeypatch.undo()
        assert not lease.holds(manifest)
        lease.hold(manifest)


def test_gc_waits_for_who_is_taking_hold(store, build):
    """While somebody is between looking and noting, GC does not decide."""
    manifest = build.kit(tags=[])
    done = []
    with gate.shared(store.layout.gc_lock):
        thread = threading.Thread(target=lambda: done.append(gc(store)))
        thread.start()
        thread.join(0.05)
        assert done == []
        assert store.find_manifest(manifest) is not None
    thread.join()
    assert store.find_manifest(manifest) is None


def test_threads_share_a_lease(store, build):
    """Threads that hold and ingest under one lease lose no note."""
    with store.lease("test") as lease:
        digests = []

        def put(number):
            digests.append(build.put(lease, b"%d" % number))

        threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(read_held(lease.path)) == sorted(digests)
        gc(store)
        assert all(store.layout.blob(digest).exists() for digest in digests)


def test_gc_beside_importers_loses_nothing(store, build):
    """GC in a loop beside four importers of the same and of other kits: every acknowledged kit is whole."""
    stop = threading.Event()
    failures = []

    def collect():
        while not stop.is_set():
            gc(store)

    def work(number):
        try:
            for turn in range(12):
                tag = ("localhost/work", f"{number}-{turn % 3}")
                manifest = build.kit(f"{turn}", [b"shared%d" % turn, b"own%d" % number], tags=[tag])
                record = store.get_manifest(store.get_tag(*tag).manifest)
                assert store.get_tag(*tag).manifest == manifest
                assert [len(store.read_blob(layer)) for layer in record.layers]
        except BaseException as error:  # noqa: BLE001  # a thread's failure has to reach the test
            failures.append(error)

    collector = threading.Thread(target=collect)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in (collector, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    collector.join()
    assert failures == []
    assert len(list(store.iter_tags())) == 12


def test_held_content_is_there(store):
    """Nothing that is absent is held."""
    with store.lease("test") as lease:
        with pytest.raises(BlobNotFound):
            lease.hold(Digest("0" * 64))
        assert read_held(lease.path) == []


def test_what_can_not_be_looked_at_is_not_taken_for_dead(store):
    """A lease whose lock can not be asked for (no descriptors, a failing disk) stops GC instead of losing to it."""
    path = store.layout.leases / "loop"
    path.symlink_to(path)
    with pytest.raises(StoreWriteFailed):
        gate.is_alive(path)
    with pytest.raises(StoreWriteFailed):
        gc(store)
    path.unlink()
    assert not gate.is_alive(path)
