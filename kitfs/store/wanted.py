"""Which mounts are wanted: made again by ``kitfs mount --restore``, after a reboot too.

On disk, beside a session's record::

    sessions/<id>.wanted    WantedMount: the record is kept, whoever serves it, until the mount is forgotten

It is no part of the record, which is never changed: a mount can be forgotten while it is still served. Used by the
daemon, which leaves the record of a wanted session at its end, by GC, for which it is a root, and by the command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from kitfs.store import durable, gate
from kitfs.store.layout import Layout
from kitfs.store.sessions import SessionRecord, end_session, iter_sessions

SUFFIX = ".wanted"
_SIZE_MAX = 64 << 10


class WantedMount(msgspec.Struct, frozen=True, kw_only=True):
    """What a mount has beside its session, which only the client knows.

    Attributes:
        staging: Path of the staging directory over it, empty for none.
        source: Its source, empty for the usual one.
        noexec: Whether nothing in it can be executed.
        allow_other: Whether others may enter it, None for the user's usual.
        version: Format of this record.
    """

    staging: str = ""
    source: str = ""
    noexec: bool = False
    allow_other: bool | None = None
    version: int = 1


class Wanted(NamedTuple):
    """A wanted mount.

    Attributes:
        record: What it serves, and where.
        mount: What it has beside.
        is_served: Whether somebody holds its session.
    """

    record: SessionRecord
    mount: WantedMount
    is_served: bool


def want(layout: Layout, session_id: str, mount: WantedMount) -> None:
    """Make a session wanted; on disk when this returns.

    Raises:
        StoreWriteFailed: when it can not be written; it is not wanted then.
    """
    path = _path(layout, session_id)
    try:
        with durable.naming(path, "creating"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            durable.write_all(fd, msgspec.json.encode(mount), path)
            durable.sync_file(fd, path)
        finally:
            os.close(fd)
        durable.sync_directory(path.parent)
    except BaseException:
        durable.remove(path)
        raise


def find_wanted(layout: Layout, session_id: str) -> WantedMount | None:
    """What a wanted session's mount has beside it, or None when it is not wanted; what can not be read is the usual."""
    try:
        with open(_path(layout, session_id), "rb") as file:
            return msgspec.json.decode(file.read(_SIZE_MAX), type=WantedMount)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return WantedMount()


def is_wanted(layout: Layout, session_id: str) -> bool:
    """Whether a session is wanted; True as well when that can not be found out."""
    return find_wanted(layout, session_id) is not None


def iter_wanted(layout: Layout) -> Iterator[Wanted]:
    """All wanted mounts, those made first first.

    Raises:
        StoreWriteFailed: when it can not be found out whether one is served.
    """
    for record, is_served in sorted(iter_sessions(layout), key=lambda pair: (pair[0].created_s, pair[0].id)):
        mount = find_wanted(layout, record.id)
        if mount is not None:
            yield Wanted(record, mount, is_served)


def forget(layout: Layout, session_id: str) -> None:
    """Make a session unwanted; its record goes too, unless it is served, when it goes at its end. Harmless twice.

    Raises:
        StoreWriteFailed: when it can not be made durable.
    """
    path = _path(layout, session_id)
    with durable.naming(path, "removing"):
        path.unlink(missing_ok=True)
    if not gate.is_alive(path.with_suffix(".json")):
        end_session(layout, session_id)
    durable.sync_directory(path.parent)


def _path(layout: Layout, session_id: str) -> Path:
    return layout.sessions / f"{session_id}{SUFFIX}"
