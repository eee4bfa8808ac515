"""The LMDB environment: settings, transactions, checksummed records, and life after a failure.

Used by the store only; nobody else sees an ``lmdb`` object. Values go in and out as records (``records.py``).

Threads. Any thread may begin a transaction at any time; a transaction belongs to the thread that began it and
is short: no file is hashed or copied inside one. LMDB lets one writer in at a time, in all processes together,
and the others wait inside ``write()`` (the interpreter lock is released). Nothing here holds a Python lock
across a transaction, so a reader never waits for a writer.

Processes. LMDB forbids opening one environment twice in a process: its POSIX locks would vanish when either
closes. ``open_index`` therefore keeps one per path and counts its users. It must never cross a fork: every
transaction compares the process id, and a child opens the store anew.

After a failed write of a meta page LMDB refuses every transaction until the environment is closed and opened
again ("panic"). The next transaction here waits until no other of this process is under way, and reopens.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb

from kitfs.store import durable
from kitfs.store.errors import IndexCorrupt, IndexFailed, IndexFull
from kitfs.store.records import Record, encode_value, parse_value
from kitfs.store.schema import PREFIXES

MAP_SIZE = 1 << 40
"""1 TiB of address space once; the file grows as needed. Resizing would invalidate live transactions."""

MAX_READERS = 1024
DATA_NAME, LOCK_NAME = "data.mdb", "lock.mdb"
"""LMDB's two files in its folder."""


class Txn:
    """One transaction; get it from ``Index.read`` or ``Index.write`` and use it in that thread only."""

    __slots__ = ("_txn",)

    def __init__(self, txn: lmdb.Transaction) -> None:
        self._txn = txn

    def find(self, table: str, key: bytes, kind: type[Record]) -> Record | None:
        """The record under ``key``, or None.

        Raises:
            RecordCorrupt: when there is one that does not verify.
        """
        value = self._txn.get(PREFIXES[table] + key)
        return None if value is None else parse_value(table, key, bytes(value), kind)

    def contains(self, table: str, key: bytes) -> bool:
        """Whether there is a record under ``key``, verified or not."""
        return self._txn.get(PREFIXES[table] + key) is not None

    def put(self, table: str, key: bytes, record: object) -> None:
        """Set the record under ``key``."""
        self._txn.put(PREFIXES[table] + key, encode_value(table, key, record))

    def delete(self, table: str, key: bytes) -> bool:
        """Remove the record under ``key``; whether there was one."""
        return bool(self._txn.delete(PREFIXES[table] + key))

    def iter_raw(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with ``prefix`` and their values as stored, in key order."""
        start = PREFIXES[table] + prefix
        with self._txn.cursor() as cursor:
            if not cursor.set_range(start):
                return
            for key, value in cursor:
                if not bytes(key).startswith(start):
                    return
                yield bytes(key[1:]), bytes(value)

    def iter_unknown(self) -> Iterator[bytes]:
        """Keys that belong to no table."""
        known = frozenset(PREFIXES.values())
        with self._txn.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                if key[:1] not in known:
                    yield bytes(key)

    def iter(self, table: str, kind: type[Record], prefix: bytes = b"") -> Iterator[tuple[bytes, Record]]:
        """Keys that begin with ``prefix`` and their records, in key order.

        Raises:
            RecordCorrupt: at the first record that does not verify.
        """
        for key, value in self.iter_raw(table, prefix):
            yield key, parse_value(table, key, value, kind)


class Index:
    """One open environment. Get it from ``open_index`` and give it back with ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = _registry_key(path)
        self.users = 0
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._active = 0
        self._poisoned = False
        self._env = self._open()

    def _open(self) -> lmdb.Environment:
        with _naming(self.path):
            env = lmdb.open(
                str(self.path),
                map_size=MAP_SIZE,
                max_readers=MAX_READERS,
                mode=0o600,
                sync=True,
                metasync=True,
                writemap=False,
            )
            try:
                env.reader_check()
                if env.info()["last_txnid"] == 0:  # LMDB syncs its file, never the name of one it has just made
                    durable.sync_directory(self.path)
            except BaseException:
                env.close()
                raise
            return env

    @contextlib.contextmanager
    def read(self) -> Iterator[Txn]:
        """A consistent view; never waits for a writer.

        Raises:
            IndexFailed, IndexCorrupt: when LMDB fails.
        """
        with self._begun(), _naming(self.path), self._marking(), self._env.begin() as txn:
            yield Txn(txn)

    @contextlib.contextmanager
    def write(self) -> Iterator[Txn]:
        """A write transaction: committed and on disk when the block ends, undone when it raises.

        Raises:
            IndexFull: when the map is full.
            IndexFailed, IndexCorrupt: when LMDB fails; nothing is recorded then.
        """
        with self._begun(), _naming(self.path), self._marking(), self._env.begin(write=True) as txn:
            yield Txn(txn)

    def last_txn(self) -> int:
        """The number of the last committed transaction."""
        with self._begun(), _naming(self.path):
            return int(self._env.info()["last_txnid"])

    @contextlib.contextmanager
    def _begun(self) -> Iterator[None]:
        if self._pid != os.getpid():
            raise RuntimeError("a store was used across a fork; open it anew in the child")
        with self._changed:
            if self._poisoned:
                self._changed.wait_for(lambda: self._active == 0 or not self._poisoned)
                if self._poisoned:
                    self._reopen()
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _reopen(self) -> None:
        self._env.close()
        self._env = self._open()
        self._poisoned = False

    @contextlib.contextmanager
    def _marking(self) -> Iterator[None]:
        """Remember that the environment is poisoned when LMDB says so, or when a commit may have made it so."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error:
            self._poisoned = True
            raise

    def disown(self) -> None:
        """Drop this process's copy of an environment that its parent opened."""
        self._env.close()

    def close(self) -> None:
        """Give the environment back; the last user closes it."""
        if self._pid != os.getpid():
            return
        with _REGISTRY_LOCK:
            self.users -= 1
            if self.users <= 0:
                _REGISTRY.pop(self.key, None)
                self._env.close()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.MapFullError as error:
        raise IndexFull(path, str(error)) from error
    except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        raise IndexCorrupt(path, str(error)) from error
    except lmdb.Error as error:
        raise IndexFailed(path, str(error)) from error


_REGISTRY: dict[tuple[int, int], Index] = {}
_REGISTRY_LOCK = threading.Lock()
_ABANDONED: list[Index] = []


def _registry_key(path: Path) -> tuple[int, int]:
    """Device and inode: two paths to one store share it, a store made anew under an old path does not."""
    try:
        status = path.stat()
    except OSError as error:
        raise IndexCorrupt(path, error.strerror or str(error)) from error
    return status.st_dev, status.st_ino


def _after_fork() -> None:
    """A child begins without environments; those of its parent are put aside, where it never uses them."""
    global _REGISTRY_LOCK
    _REGISTRY_LOCK = threading.Lock()
    _ABANDONED.extend(_REGISTRY.values())
    _REGISTRY.clear()


def _let_go(key: tuple[int, int]) -> None:
    """Close the parent's environment in this child, or the binding would refuse a second one; the parent's lives on."""
    for index in [index for index in _ABANDONED if index.key == key]:
        _ABANDONED.remove(index)
        index.disown()


os.register_at_fork(after_in_child=_after_fork)


def is_open_here(path: Path) -> bool:
    """Whether this process has the environment at ``path`` open."""
    with _REGISTRY_LOCK:
        return _registry_key(path) in _REGISTRY


@contextlib.contextmanager
def read_unlocked(path: Path) -> Iterator[Txn]:
    """A view of an environment that nobody writes and that this process has not opened; takes no lock.

    Raises:
        IndexFailed, IndexCorrupt: when LMDB fails. Damaged pages can end the process.
    """
    with _naming(path), lmdb.open(str(path), readonly=True, lock=False, create=False) as env, env.begin() as txn:
        yield Txn(txn)


def open_index(path: Path) -> Index:
    """The one environment of this process at ``path``, opened or shared.

    Raises:
        IndexFailed, IndexCorrupt: when LMDB can not open it.
    """
    with _REGISTRY_LOCK:
        key = _registry_key(path)
        index = _REGISTRY.get(key)
        if index is None:
            _let_go(key)
            index = _REGISTRY[key] = Index(path)
        index.users += 1
        return index
