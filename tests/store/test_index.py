"""The environment: sharing, forks, threads, and life after a failure."""

import os
import threading

import lmdb
import pytest

from kitfs.store import index as index_module
from kitfs.store import schema
from kitfs.store.errors import IndexCorrupt, IndexFull, RecordCorrupt
from kitfs.store.records import CountRecord
from kitfs.store.store import Store


def test_one_environment_is_shared_by_all_users_of_a_path(store_home):
    """Two stores of one home in a process share the environment; it works until the last is closed."""
    first, second = Store.open(store_home), Store.open(store_home / ".." / store_home.name)
    assert first.index is second.index
    first.close()
    first.close()
    assert list(second.iter_tags()) == []
    second.close()


def test_store_is_refused_in_a_forked_child_and_opens_anew(store):
    """A child can not use its parent's store, and can open it itself without harm to the parent."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            store.generation()
        except RuntimeError:
            with Store.open(store.home) as own:
                code = 0 if list(own.iter_tags()) == [] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.generation() >= 0


def test_failed_block_changes_nothing(store):
    """A write transaction whose block raises leaves nothing."""
    with pytest.raises(KeyError), store.index.write() as txn:
        txn.put(schema.COUNTS, b"x", CountRecord(1))
        raise KeyError
    with store.index.read() as txn:
        assert txn.find(schema.COUNTS, b"x", CountRecord) is None


def test_reader_never_waits_for_a_writer(store):
    """While one thread stays inside a write transaction, another opens the store and reads."""
    inside, leave = threading.Event(), threading.Event()

    def write():
        with store.index.write() as txn:
            txn.put(schema.COUNTS, b"x", CountRecord(1))
            inside.set()
            leave.wait(30)
            txn.delete(schema.COUNTS, b"x")

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(30)
    with Store.open(store.home) as other:
        assert list(other.iter_tags()) == []
    leave.set()
    writer.join()


def test_threads_write_in_turn(store):
    """Eight threads that each count up twenty times lose no step."""

    def count():
        for _ in range(20):
            with store.index.write() as txn:
                old = txn.find(schema.COUNTS, schema.COUNT_TAGS, CountRecord) or CountRecord()
                txn.put(schema.COUNTS, schema.COUNT_TAGS, CountRecord(old.count + 1))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.index.write() as txn:
        assert txn.find(schema.COUNTS, schema.COUNT_TAGS, CountRecord).count == 160
        txn.delete(schema.COUNTS, schema.COUNT_TAGS)


def test_corrupt_record_is_named(damaged):
    """A record whose value was changed behind our back is an error that names table and key."""
    with damaged.index.write() as txn:
        txn._txn.put(b"cx", b"\x01" + bytes(30))
    with damaged.index.read() as txn, pytest.raises(RecordCorrupt) as caught:
        txn.find(schema.COUNTS, b"x", CountRecord)
    assert (caught.value.table, caught.value.key) == ("counts", b"x")


def test_full_map_is_an_error_and_leaves_the_index_usable(store_home, monkeypatch):
    """When the map is full nothing is recorded, the error says so, and reading goes on."""
    monkeypatch.setattr(index_module, "MAP_SIZE", 256 * 1024)
    with Store.open(store_home) as store:
        with pytest.raises(IndexFull), store.index.write() as txn:
            for number in range(100):
                txn.put(schema.CHECKPOINTS, bytes((number,)), bytes(16 * 1024))
        with store.index.read() as txn:
            assert list(txn.iter_raw(schema.CHECKPOINTS)) == []
        store.inode_base(b"key", 1)


def test_poisoned_environment_is_opened_again(store):
    """After LMDB has refused to go on, the next transaction opens the environment anew."""
    first = store.index._env
    with pytest.raises(index_module.IndexFailed), store.index.write():
        raise lmdb.PanicError("mdb_txn_commit: MDB_PANIC")
    assert store.inode_base(b"key", 3) == 2
    assert store.index._env is not first


def test_file_that_is_no_index_is_named(store_home):
    """A data file that LMDB does not know is an error with its path, and the store is not opened."""
    Store.open(store_home).close()
    (store_home / "index" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(IndexCorrupt, match="index"):
        Store.open(store_home)


def test_index_that_is_gone_is_named(store_home):
    """A store whose index folder somebody removed says so."""
    Store.open(store_home).close()
    for path in (store_home / "index").iterdir():
        path.unlink()
    (store_home / "index").rmdir()
    with pytest.raises(IndexCorrupt):
        Store.open(store_home)
