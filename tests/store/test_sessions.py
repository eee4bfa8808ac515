"""Sessions: written whole, alive by their lock, roots of garbage collection."""

import os
import stat
import threading

import msgspec
import pytest

from kitfs.digest import Digest
from kitfs.store.errors import ManifestNotFound, SessionNotFound, StoreWriteFailed
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.sessions import SessionOptions, SessionRecord, new_session_id
from kitfs.store.wanted import WantedMount, forget, iter_wanted, want


def record_of(*manifests):
    return SessionRecord(
        id=new_session_id(),
        kind="kit",
        mountpoint="/mnt/model",
        uid=1000,
        gid=1000,
        boot_id="boot",
        created_s=5,
        reference="myllm:1",
        manifests=[str(manifest) for manifest in manifests],
        options=SessionOptions(modes="tar", meta=False),
        inode_first=77,
    )


def test_session_is_read_back_by_its_successor(store, build):
    """Who opens a session gets the record that was created, and both hold it."""
    record = record_of(build.kit())
    with store.create_session(record) as held, store.open_session(record.id) as other:
        assert other.record == record == held.record
        held.close()
        assert list(store.iter_sessions()) == [(record, True)]
    assert list(store.iter_sessions()) == [(record, False)]
    store.end_session(record.id)
    assert list(store.iter_sessions()) == []
    assert list(store.layout.sessions.iterdir()) == []


def test_session_files_are_private(store, build):
    """A session's files are 0600, and no scratch file stays."""
    with store.create_session(record_of(build.kit())) as held:
        held.append_name(b"{}")
        for path in store.layout.sessions.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert path.suffix in (".json", ".holds", ".names")


def test_session_keeps_its_manifests_and_what_it_took_hold_of(store, build):
    """Removing every tag changes nothing for a session that is alive; its end lets go."""
    shown, later = build.kit("a", [b"a"], tags=[("localhost/x", "a")]), build.kit("b", [b"b"], tags=[])
    with store.create_session(record_of(shown)) as held:
        held.hold(later)
        with store.lease("untag") as lease:
            change = store.change(lease)
            change.remove_tag("localhost/x", "a")
            change.commit()
        gc(store)
        assert {digest for digest, _ in store.iter_manifests()} == {shown, later}
    report = gc(store)
    assert "session" in {victim.kind for victim in report.victims}
    assert list(store.iter_manifests()) == []
    assert list(store.layout.sessions.iterdir()) == []


def test_wanted_session_keeps_its_manifests_unheld(store, build):
    """A session that is wanted after a reboot is a root though nobody holds it, until it is forgotten."""
    manifest = build.kit(tags=[])
    record = record_of(manifest)
    beside = WantedMount(noexec=True, staging="/work")
    with store.create_session(record):
        want(store.layout, record.id, beside)
    gc(store)
    assert store.find_manifest(manifest) is not None
    assert list(iter_wanted(store.layout)) == [(record, beside, False)]
    forget(store.layout, record.id)
    assert list(store.layout.sessions.iterdir()) == []
    gc(store)
    assert store.find_manifest(manifest) is None


def test_session_that_is_served_is_forgotten_at_its_end(store, build):
    """Who serves it keeps it whole meanwhile; after that it is like any other that is dead."""
    with store.create_session(record_of(build.kit())) as held:
        want(store.layout, held.id, WantedMount())
        forget(store.layout, held.id)
        forget(store.layout, held.id)
        assert list(store.iter_sessions()) == [(held.record, True)]
        assert list(iter_wanted(store.layout)) == []
    gc(store)
    assert list(store.layout.sessions.iterdir()) == []


def test_damaged_mark_still_says_that_a_session_is_wanted(store, build):
    """What it says beside is the usual then; a mark without a session is swept."""
    with store.create_session(record_of(build.kit())) as held:
        (store.layout.sessions / f"{held.id}.wanted").write_bytes(b"\0")
    (store.layout.sessions / "other.wanted").write_bytes(b"")
    gc(store)
    assert list(iter_wanted(store.layout)) == [(held.record, WantedMount(), False)]
    assert not (store.layout.sessions / "other.wanted").exists()


def test_session_on_a_manifest_that_is_gone_is_refused(store):
    """No session is made on what GC has taken meanwhile, and nothing of it stays."""
    with pytest.raises(ManifestNotFound):
        store.create_session(record_of(Digest("0" * 64)))
    assert list(store.layout.sessions.iterdir()) == []


def test_lock_is_inherited_by_a_fork(store, build):
    """A session stays alive while a forked child has it, though the parent has let go."""
    held = store.create_session(record_of(build.kit(tags=[])))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    held.close()
    gc(store)
    assert [alive for _, alive in store.iter_sessions()] == [True]
    os.close(write)
    os.waitpid(pid, 0)
    assert [alive for _, alive in store.iter_sessions()] == [False]


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a" * 65, "-a", "a\0b", "a.json"])
def test_names_that_are_no_ids_are_refused(store, name):
    """An id is a plain name; nothing else reaches the file system."""
    for call in (store.open_session, store.end_session):
        with pytest.raises(SessionNotFound):
            call(name)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"id": 5}', b'{"id": "x"}'])
def test_unreadable_session_is_not_opened_and_stops_gc(damaged, text):
    """A session file that can not be read is no session; GC sweeps nothing and fsck names it."""
    (damaged.layout.sessions / "abc.json").write_bytes(text)
    with pytest.raises(SessionNotFound):
        damaged.open_session("abc")
    assert list(damaged.iter_sessions()) == []
    with pytest.raises(Exception, match="session abc"):
        gc(damaged)
    assert "unreadable-session" in {finding.damage for finding in check(damaged).problems}


def test_session_of_a_newer_kitfs_is_not_opened(damaged):
    """A record of a newer version is not guessed at."""
    record = msgspec.structs.replace(record_of(), version=2)
    (damaged.layout.sessions / f"{record.id}.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(SessionNotFound):
        damaged.open_session(record.id)


def test_names_are_appended_in_order_and_torn_ones_cut(store, build):
    """Numbers are read back in order; a line that a kill cut short is gone after the next one."""
    record = record_of(build.kit())
    with store.create_session(record) as held:
        held.append_name(b"one")
        held.append_name(b"two")
        with open(held.names_path, "ab") as file:
            file.write(b"thr")
        assert held.read_names() == [b"one", b"two"]
        with store.open_session(record.id) as successor:
            successor.append_name(b"four")
            assert successor.read_names() == [b"one", b"two", b"four"]


def test_failed_write_leaves_no_session(store, build, monkeypatch):
    """When the record can not be written whole, there is no session and no file."""
    manifest = build.kit()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with pytest.raises(StoreWriteFailed):
        store.create_session(record_of(manifest))
    assert list(store.layout.sessions.iterdir()) == []


def test_sessions_come_and_go_beside_collections(store, build):
    """GC takes no session that is being created, and one that ends while it looks is no damage."""
    manifest, failures, over = build.kit(), [], threading.Event()

    def collect():
        try:
            while not over.is_set():
                gc(store)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(150):
            record = record_of(manifest)
            store.create_session(record).close()
            store.end_session(record.id)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
