"""Registered staging directories: what garbage collection keeps for them.

Used by ``kitfs.modelkit.staging``, which knows what a staging directory holds, and by GC, which knows no more than that
one needs its whole chain of parents. On disk, no part of the index::

    staging/<name>          the staging directory, or a link to one that lies elsewhere
    staging/<name>.json     Registration, written whole: a root of GC for as long as the directory is there

A directory that somebody removed is no root any more. One that can not be seen now, because the file system that it
lies on is not mounted, still is: the device of its place tells the two apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kitfs.digest import Digest, DigestMalformed
from kitfs.store import durable, gate
from kitfs.store.errors import ManifestNotFound
from kitfs.store.layout import Layout
from kitfs.store.stamp import find_status

RECORD_NAME = "staging.json"
"""The file that makes a directory a staging directory."""

REGISTRATION_VERSION = 1
_NAME_SIZE_MAX = 100
_SCRATCH = ".new"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """One staging directory as the store knows it.

    Attributes:
        path: Where it lies, absolute.
        device: Number of the file system that it lies on.
        reference: What it was made over, for people.
        manifests: ``sha256:…`` of the ModelKit, then of every parent; more while it is moved onto another ModelKit.
        version: Format of this record.
    """

    path: str
    device: int
    reference: str
    manifests: list[str]
    version: int = REGISTRATION_VERSION


def register(layout: Layout, path: Path, reference: str, manifests: Sequence[Digest]) -> None:
    """Make a staging directory a root of garbage collection; on disk when this returns. Replaces what was registered.

    Args:
        layout: The store.
        path: The staging directory, its real path; it exists.
        reference: What it was made over.
        manifests: Its ModelKit, then every parent.

    Raises:
        ManifestNotFound: when one of them is not in the store (any more); what was registered stays.
        StoreWriteFailed: when writing failed.
    """
    with durable.naming(layout.staging, "making"):
        layout.staging.mkdir(mode=0o700, exist_ok=True)
        device = path.stat().st_dev
    record = Registration(path=str(path), device=device, reference=reference, manifests=[str(one) for one in manifests])
    target = registration_of(layout, path)
    scratch = target.with_name(f"{target.stem}.{os.urandom(4).hex()}{_SCRATCH}")
    with gate.shared(layout.gc_lock), durable.naming(scratch, "creating"):
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)  # before a GC can see it without
    try:
        durable.write_all(fd, msgspec.json.encode(record), scratch)
        durable.sync_file(fd, scratch)
        with gate.shared(layout.gc_lock):
            for manifest in manifests:
                if not layout.blob(manifest).exists():
                    raise ManifestNotFound(manifest)
            durable.rename_over(scratch, target)
    except BaseException:
        durable.remove(scratch)
        raise
    finally:
        os.close(fd)
    _link(layout, path)
    durable.sync_directory(layout.staging)
    durable.sync_directory(layout.home)


def _link(layout: Layout, path: Path) -> None:
    """See that a directory that lies elsewhere has its link."""
    link = registration_of(layout, path).with_suffix("")
    if _is_at_home(layout, path) or (link.is_symlink() and link.readlink() == path):
        return
    durable.remove(link)
    with durable.naming(link, "linking"):
        link.symlink_to(path)


def registration_of(layout: Layout, path: Path) -> Path:
    """The file of a staging directory's registration, there or not."""
    if _is_at_home(layout, path):
        return layout.staging / f"{path.name}.json"
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return layout.staging / f"{path.name[: _NAME_SIZE_MAX - len(mark)]}-{mark}.json"


def _is_at_home(layout: Layout, path: Path) -> bool:
    return os.path.realpath(layout.staging) == os.fspath(path.parent)


def forget(layout: Layout, path: Path) -> None:
    """Remove a registration and its link; what only it kept is GC's. Harmless when there is none."""
    registration = registration_of(layout, path)
    if not _is_at_home(layout, path):
        durable.remove(registration.with_suffix(""))
    durable.remove(registration)
    with contextlib.suppress(FileNotFoundError):
        durable.sync_directory(layout.staging)


def iter_registrations(layout: Layout) -> Iterator[tuple[Path, Registration | None]]:
    """Every registration's file, and what it says, or None when it can not be read.

    Raises:
        OSError: when the folder can not be listed.
    """
    if find_status(layout.staging) is None:
        return
    for path in sorted(layout.staging.glob("*.json")):
        if not path.is_dir():
            record = _find_registration(path)
            if record is not None or path.exists():
                yield path, record


def _find_registration(path: Path) -> Registration | None:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Registration)
        for manifest in record.manifests:
            Digest.parse(manifest)
    except (OSError, msgspec.DecodeError, DigestMalformed, UnicodeDecodeError):
        return None
    place = path.with_suffix("")
    if place.is_dir() and not place.is_symlink():  # the store may have been moved
        record = msgspec.structs.replace(record, path=os.path.realpath(place))
    return record if record.version <= REGISTRATION_VERSION else None


def iter_scratch(layout: Layout) -> Iterator[Path]:
    """Registrations whose writer has died.

    Raises:
        StoreWriteFailed: when that can not be found out.
    """
    if find_status(layout.staging) is not None:
        for path in sorted(layout.staging.glob(f"*{_SCRATCH}")):
            if path.is_file() and not gate.is_alive(path):
                yield path


def is_gone(registration: Registration) -> bool:
    """Whether a staging directory was removed: it is not there, and the file system that it lay on is."""
    path = Path(registration.path)
    try:
        if find_status(path / RECORD_NAME) is not None:
            return False
        while (status := find_status(path)) is None:
            path = path.parent
    except OSError:  # as where it may not be looked: nobody knows
        return False
    return status.st_dev == registration.device
