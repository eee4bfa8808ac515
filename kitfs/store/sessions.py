"""Sessions: what one mount serves, resolved once and written down (store.md 5).

Used by workers (which create and serve them), the daemon (which ends them) and GC. On disk::

    sessions/<id>.json     SessionRecord, written whole, never changed; alive while its flock is held (shared)
    sessions/<id>.holds    digests taken hold of later, one a line, as in a lease
    sessions/<id>.wanted   whether it is mounted again after a reboot (kitfs.store.wanted)
    sessions/<id>.lost     why nobody serves it any more though it may still be mounted, for people
    sessions/<id>.names    numbers given to directories of a `--all` mount, appended by whoever serves it

Descriptors of a held session are close-on-exec and survive a fork: a worker forked by the keeper of the session
holds it too. Ending a session removes its files, whoever still holds them.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from kitfs.digest import Digest, DigestMalformed
from kitfs.store import durable, gate
from kitfs.store.errors import ManifestNotFound, SessionNotFound
from kitfs.store.layout import Layout
from kitfs.store.lease import HeldDigests

SESSION_VERSION = 1
_SIZE_MAX = 4 << 20
_ID = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_-]{0,63}")


class SessionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """Options of a mount; ``modes`` and ``meta`` change what its tree shows, the others how it is read.

    Attributes:
        modes: ``kit`` (0444, 0555), ``writable`` (0644, 0755) or ``tar`` (as recorded).
        meta: Whether ``.kitfs`` is shown.
        materialise: When members get files of their own: ``auto``, ``never`` or ``always``.
        size_max: What members may take of the disk, as ``quota`` reads it.
    """

    modes: str = "kit"
    meta: bool = True
    materialise: str = "auto"
    size_max: str = ""


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a mount serves; all a worker needs.

    Attributes:
        id: Its name in ``sessions/``.
        kind: One ModelKit or the whole store.
        mountpoint: Where it was mounted.
        uid: Who mounted it.
        gid: That user's group.
        boot_id: The boot it was mounted in.
        created_s: When, seconds since the epoch.
        reference: What was asked for, for people.
        manifests: ``sha256:…`` of the ModelKit, then of every parent.
        filter: As given to ``--filter``.
        options: What it shows and how.
        trust: ``digest`` or ``index``.
        tree_version: The version of the rules that make a tree of it.
        inode_first: First inode number of its tree.
        staging: Identity of the staging directory whose lower layer it is, empty for others.
        version: Format of this record.
    """

    id: str
    kind: Literal["kit", "all"]
    mountpoint: str
    uid: int
    gid: int
    boot_id: str
    created_s: int
    reference: str = ""
    manifests: list[str] = []
    filter: list[str] = []
    options: SessionOptions = SessionOptions()
    trust: str = "digest"
    tree_version: int = 1
    inode_first: int = 2
    staging: str = ""
    version: int = SESSION_VERSION


_RECORD = msgspec.json.Decoder(SessionRecord)
"""Made once by the zygote: each worker would take 0.6 ms for it."""


class HeldSession(HeldDigests):
    """A session whose lock this process holds. Close it to let go.

    Attributes:
        record: What it serves.
        id: Its name.
        names_path: The file of directory numbers; may be absent.
    """

    def __init__(self, layout: Layout, record: SessionRecord, lock_fd: int) -> None:
        self.record = record
        self.id = record.id
        self.names_path = layout.sessions / f"{record.id}.names"
        self._lock_fd = lock_fd
        path = layout.sessions / f"{record.id}.holds"
        with durable.naming(path, "opening"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        super().__init__(layout, path, fd)

    def fileno(self) -> int:
        """The descriptor that holds the lock, to be passed to another process."""
        return self._lock_fd

    def read_names(self) -> list[bytes]:
        """The whole lines of the names file, in order; a line that a kill cut short was never relied upon.

        Raises:
            OSError: when the file is there and can not be read.
        """
        try:
            raw = self.names_path.read_bytes()
        except FileNotFoundError:
            return []
        return raw[: raw.rfind(b"\n") + 1].splitlines()

    def append_name(self, line: bytes) -> None:
        """Append a line to the names file. It outlives this process, not the machine: numbers end with the mount.

        What a kill left of the line before is cut off first. One process at a time appends.

        Raises:
            StoreWriteFailed: when it could not be appended whole.
        """
        with durable.naming(self.names_path, "appending"):
            fd = os.open(self.names_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with durable.naming(self.names_path, "cutting"):
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    os.ftruncate(fd, self.names_path.read_bytes().rfind(b"\n") + 1)
            durable.write_all(fd, line + b"\n", self.names_path)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the session; it is alive while any other descriptor of it holds the lock."""
        for name in ("_fd", "_lock_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def new_session_id() -> str:
    """A name for a new session."""
    return os.urandom(8).hex()


def create_session(layout: Layout, record: SessionRecord) -> HeldSession:
    """Write a session down and hold it; on disk when this returns.

    Raises:
        ManifestNotFound: when a manifest that it serves is not in the store (any more).
        StoreWriteFailed: when writing failed; no session is there then.
        SessionNotFound: when its id is no possible name.
    """
    path = _path(layout, record.id)
    scratch = path.with_suffix(".new")
    is_placed = False
    with gate.shared(layout.gc_lock), durable.naming(scratch, "creating"):
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)  # before a GC can see it without
    try:
        durable.write_all(fd, msgspec.json.encode(record), scratch)
        durable.sync_file(fd, scratch)
        with gate.shared(layout.gc_lock):
            for manifest in map(Digest.parse, record.manifests):
                if not layout.blob(manifest).exists():
                    raise ManifestNotFound(manifest)
            durable.rename_over(scratch, path)
            is_placed = True
        durable.sync_directory(path.parent)
        return HeldSession(layout, record, fd)
    except BaseException:
        os.close(fd)
        durable.remove(scratch)
        if is_placed:
            end_session(layout, record.id)
        raise


def open_session(layout: Layout, session_id: str) -> HeldSession:
    """Hold a session that is there, as its worker does.

    Raises:
        SessionNotFound: when there is none, or its file is not readable as one.
        StoreWriteFailed: when its holds can not be opened.
    """
    path = _path(layout, session_id)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise SessionNotFound(session_id) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        record = _parse(os.pread(fd, _SIZE_MAX, 0))
        if record is None:
            raise SessionNotFound(session_id)
        return HeldSession(layout, record, fd)
    except BaseException:
        os.close(fd)
        raise


def iter_sessions(layout: Layout) -> Iterator[tuple[SessionRecord, bool]]:
    """All sessions that can be read, and whether anybody holds them.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    for path in sorted(layout.sessions.glob("*.json")):
        record = find_record(path)
        if record is not None:
            yield record, gate.is_alive(path)


def find_record(path: Path) -> SessionRecord | None:
    """The record in a session's file, or None when it can not be read as one."""
    try:
        record = _parse(path.read_bytes())
    except OSError:
        return None
    return record if record is not None and record.id == path.stem else None


def end_session(layout: Layout, session_id: str) -> None:
    """Remove a session's files; what only it kept is GC's. Harmless when it has ended.

    Raises:
        SessionNotFound: when the id is no possible name.
    """
    path = _path(layout, session_id)
    for suffix in (".wanted", ".json", ".holds", ".names", ".lost"):
        durable.remove(path.with_suffix(suffix))


def note_lost(layout: Layout, session_id: str, reason: str) -> None:
    """Leave a session's record as one of a mount that can not be served any more, until garbage collection.

    Raises:
        OSError: when it can not be written.
    """
    _path(layout, session_id).with_suffix(".lost").write_text(reason, "utf-8", "replace")


def find_lost(layout: Layout, session_id: str) -> str:
    """Why a session is not served any more, empty when nobody has said so."""
    try:
        return _path(layout, session_id).with_suffix(".lost").read_text("utf-8", "replace")
    except OSError:
        return ""


def _path(layout: Layout, session_id: str) -> Path:
    if not _ID.fullmatch(session_id):
        raise SessionNotFound(session_id)
    return layout.sessions / f"{session_id}.json"


def _parse(raw: bytes) -> SessionRecord | None:
    try:
        record = _RECORD.decode(raw)
        for manifest in record.manifests:
            Digest.parse(manifest)
    except (msgspec.DecodeError, DigestMalformed, UnicodeDecodeError):
        return None
    return record if record.version <= SESSION_VERSION else None
