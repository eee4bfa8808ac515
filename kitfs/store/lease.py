"""Leases: what a running operation relies on is kept by GC until the lease ends.

Used by every operation that adds to the store or reads from it for longer than a moment. A lease is a file in
``leases/`` with one digest a line, and it is alive while its flock is held: a killed process ends its lease by
dying. Threads may share one. Holding a manifest keeps its config, layers, their members and its parents.
Nothing of a lease is fsynced, because none outlives a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from kitfs.digest import Digest, DigestMalformed
from kitfs.store import durable, gate
from kitfs.store.errors import BlobNotFound, LeaseEnded, StoreWriteFailed
from kitfs.store.layout import Layout
from kitfs.store.records import BlobForm, Stamp


class Placement(NamedTuple):
    """A file that this lease put in its place.

    Attributes:
        form: How.
        stamp: What the file looked like right after.
    """

    form: BlobForm
    stamp: Stamp


class HeldDigests:
    """A file to which digests are appended as they are taken hold of; the base of leases and sessions' holds.

    A line is in the file before the content is relied upon, and both happen under the shared ``gc.lock``.
    """

    def __init__(self, layout: Layout, path: Path, fd: int) -> None:
        self.layout = layout
        self.path = path
        self._fd = fd
        self._held: set[Digest] = set()
        self._lock = threading.Lock()

    def hold(self, digest: Digest) -> None:
        """Keep a blob or member from now on, and what a manifest among them leads to.

        Raises:
            BlobNotFound: when no file of this digest is there (any more).
            StoreWriteFailed: when the note could not be written; nothing is held then.
        """
        with self._lock:
            if digest in self._held:
                return
            with gate.shared(self.layout.gc_lock):
                places = (self.layout.blob(digest), self.layout.member(digest), self.layout.recipe(digest))
                if not any(path.exists() for path in places):
                    raise BlobNotFound(digest)
                self._append(digest)
            self._held.add(digest)

    def holds(self, digest: Digest) -> bool:
        """Whether this very digest was taken hold of here."""
        return digest in self._held

    def _append(self, digest: Digest) -> None:
        # The newline before keeps this line whole behind one that a full disk cut short.
        durable.write_all(self._fd, f"\n{digest}\n".encode(), self.path)


class Lease(HeldDigests):
    """An operation under way; get it from ``Store.lease`` and use it as a context manager.

    Attributes:
        purpose: What it is for, for people.
        id: Its name in ``leases/``; names of its ingests begin with it.
        placements: Files that were put in their place under it.
    """

    def __init__(self, layout: Layout, purpose: str) -> None:
        self.id = f"{os.getpid()}-{os.urandom(8).hex()}"
        self.purpose = purpose
        self.placements: dict[Digest, Placement] = {}
        self.member_placements: dict[Digest, Placement] = {}
        self._ingests = 0
        self._pid = os.getpid()
        self.closed = False
        path = layout.leases / self.id
        with gate.shared(layout.gc_lock), durable.naming(path, "creating"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        super().__init__(layout, path, fd)

    def place(self, source: Path, target: Path, digest: Digest, *, replace: bool) -> bool:
        """Note the digest, then rename a finished file into place, in one hold of the shared ``gc.lock``.

        Args:
            source: The file, whole, verified, fsynced, with its final mode.
            target: Where it goes.
            digest: What it holds.
            replace: Replace a file that is there, else leave both as they are.

        Returns:
            False when a file was there and was left; this lease keeps it.

        Raises:
            StoreWriteFailed: when noting or renaming failed; nothing was placed.
            LeaseEnded: when the lease is closed.
        """
        with self._lock:
            self.check_open()
            with gate.shared(self.layout.gc_lock):
                if digest not in self._held:
                    self._append(digest)
                    self._held.add(digest)
                if replace:
                    durable.rename_over(source, target)
                    return True
                return durable.rename_new(source, target)

    def next_ingest(self) -> Path:
        """A name for a new ingest that belongs to this lease.

        Raises:
            LeaseEnded: when the lease is closed.
        """
        with self._lock:
            self.check_open()
            self._ingests += 1
            return self.layout.ingest / f"{self.id}.{self._ingests}"

    def check_open(self) -> None:
        """Raise when the lease is closed.

        Raises:
            LeaseEnded: when it is.
        """
        if self.closed:
            raise LeaseEnded(self.purpose)

    def hold(self, digest: Digest) -> None:
        """Keep a blob or member until the lease ends; see ``HeldDigests.hold``.

        Raises:
            BlobNotFound: when no file of this digest is there (any more).
            StoreWriteFailed: when the note could not be written.
            LeaseEnded: when the lease is closed.
        """
        self.check_open()
        super().hold(digest)

    def close(self) -> None:
        """End the lease; what nothing else keeps is GC's."""
        if self.closed:
            return
        self.closed = True
        if self._pid == os.getpid():
            durable.remove(self.path)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_held(path: Path) -> list[Digest]:
    """The digests noted in a lease's or session's file; a torn last line is a digest nobody relies on yet.

    Raises:
        StoreWriteFailed: when a file that is there can not be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreWriteFailed(path, "reading", error.strerror or str(error)) from error
    held = []
    for line in text.decode("ascii", "replace").splitlines():
        with contextlib.suppress(DigestMalformed):
            held.append(Digest.parse(line))
    return held
