"""Resolving a mount once: the record from which a worker, and every successor of it, builds the same tree.

Used by a mount's first worker, before anything is mounted. When ``prepare_session`` returns, the record is on disk and
fsynced, its lock is held, and garbage collection keeps everything it names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kitfs.digest import Digest, checksum
from kitfs.errors import KitfsError
from kitfs.modelkit import NODES_MAX, TREE_VERSION
from kitfs.modelkit.filters import parse_filters
from kitfs.modelkit.resolve import reopen, resolve
from kitfs.store.partials import boot_id
from kitfs.store.sessions import HeldSession, SessionOptions, SessionRecord, new_session_id

if TYPE_CHECKING:
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store

ALL_INODES = 1 << 40
"""Inode numbers set aside for a session that shows the whole store: directories and trees get theirs from it."""
ALL_REFERENCE = "all"


class SessionUnsupported(KitfsError):
    """A session whose tree another version of kitfs numbered."""

    def __init__(self, session: str, version: int) -> None:
        super().__init__(f"session {session} shows a tree of version {version}, this kitfs makes {TREE_VERSION}")
        self.hint = "kitfs umount it and mount it again"


def prepare_session(
    store: Store,
    reference: Reference | None,
    *,
    mountpoint: Path,
    uid: int,
    gid: int,
    options: SessionOptions,
    session_id: str | None = None,
    filters: Sequence[str] = (),
    manifests: Sequence[Digest] = (),
    staging: str = "",
) -> HeldSession:
    """Resolve what a mount shows and record it. The tree itself is built by the worker.

    Args:
        store: The store.
        reference: The ModelKit, or None for the whole store.
        mountpoint: Where it will be mounted, absolute.
        uid: The user who mounts.
        gid: That user's group.
        options: What it shows and how.
        session_id: Name of the session, None to make one up.
        filters: What of the ModelKit is shown, as in ``filters``; none for all.
        manifests: What the reference was resolved to before, the ModelKit first; none to resolve it now.
        staging: Identity of the staging directory whose lower layer it is, empty for none.

    Raises:
        BlobNotFound: when one of ``manifests`` is gone.
        ModelKitNotFound: when the ModelKit or a parent is not in the store.
        MalformedError: when a manifest or Kitfile breaks its format.
        FilterMalformed: when a filter breaks the grammar.
    """
    parse_filters(filters)
    with store.lease("mount") as lease:
        for digest in manifests:
            lease.hold(digest)
        resolved = None
        if reference:
            resolved = reopen(store, reference.display, manifests) if manifests else resolve(store, reference)
        for digest in resolved.digests if resolved else ():
            lease.hold(digest)
        record = SessionRecord(
            id=session_id or new_session_id(),
            kind="kit" if resolved else "all",
            mountpoint=str(mountpoint),
            uid=uid,
            gid=gid,
            reference=resolved.reference if resolved else ALL_REFERENCE,
            manifests=[str(digest) for digest in resolved.digests] if resolved else [],
            options=options,
            filter=list(filters),
            staging=staging,
            tree_version=TREE_VERSION,
            boot_id=boot_id(),
            created_s=int(time.time()),
        )
        record = msgspec.structs.replace(record, inode_first=store.inode_base(*inode_need(record)))
        return store.create_session(record)


def inode_need(record: SessionRecord) -> tuple[bytes, int]:
    """Under which key a session has inode numbers, and how many."""
    if record.kind == "all":
        return b"all:" + record.id.encode(), ALL_INODES
    return tree_key(record), NODES_MAX


def tree_key(record: SessionRecord) -> bytes:
    """What a tree's inode numbers depend on, as 16 bytes: equal sessions show equal numbers."""
    shown = {"modes": record.options.modes, "meta": record.options.meta}
    parts = (record.manifests, record.filter, shown, record.tree_version)
    return checksum(msgspec.json.encode(parts))
