"""A changed folder becomes a new ModelKit: ``kitfs commit`` for Python."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from kitfs.home import default_home
from kitfs.layer.compress import PackCompression
from kitfs.modelkit.derive import DeriveOptions, derive
from kitfs.modelkit.resolve import resolve
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

_log = logging.getLogger("kitfs")


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit made.

    Attributes:
        id: The ModelKitID of the new ModelKit; the parent's where nothing was new.
        parent: The ModelKitID of the one that it was made from; None for a folder without a parent.
        is_new: Whether there was anything to commit.
    """

    id: str
    parent: str | None
    is_new: bool


def commit(
    source: str | os.PathLike[str],
    reference: str,
    *,
    message: str | None = None,
    parent: str | None = None,
    force: bool = False,
    compression: Literal["none", "gzip", "gzip-fastest", "zstd"] | None = None,
    ignore_untracked: bool = False,
    created: datetime | None = None,
    home: str | os.PathLike[str] | None = None,
) -> Commit:
    """Make a new ModelKit of a folder and tag it; its parent stays as it is, and layers without a change are its own.

    In the store when this returns, all of it, durable. Whatever is raised, nothing of it is visible. What a person
    should know is a warning of the logger ``kitfs``.

    Args:
        source: The mount point of a writable mount, a staging directory, or any folder with a Kitfile.
        reference: The tag of the new ModelKit.
        message: What is new in it.
        parent: What a folder was made from; a staging directory knows its own.
        force: Move the tag when it is there already.
        compression: Of layers that are written; as in the parent unless given.
        ignore_untracked: Leave out files that no entry of the Kitfile claims.
        created: The creation time to record, with a time zone; now unless given.
        home: The store's folder; ``$KITFS_HOME``, else where the commands have it.

    Raises:
        TagTaken: when the tag is there and ``force`` is not set.
        FilesUntracked: when files are under no entry of the Kitfile.
        ModelKitNotFound: when the parent is not in the store.
        KitfsError: when the request, the folder or the store can not be used, or somebody writes to the folder.
        ValueError: when ``compression`` is none of those, or ``created`` has no time zone.
    """
    options = DeriveOptions(
        message=message or "",
        compression=None if compression is None else PackCompression(compression),
        ignores_untracked=ignore_untracked,
        moves_tag=force,
        created_s=None if created is None else _seconds(created),
    )
    target, named = parse_reference(reference), None if parent is None else parse_reference(parent)
    with Store.open(Path(home) if home is not None else default_home()) as store:
        resolved = None if named is None else resolve(store, named)
        derived = derive(store, Path(source), target, parent=resolved, options=options, warn=_log.warning)
    assert derived.manifest is not None  # it was no dry run
    return Commit(
        str(derived.manifest), None if derived.parent is None else str(derived.parent.digests[0]), derived.is_new
    )


def _seconds(created: datetime) -> int:
    if created.tzinfo is None:
        raise ValueError("created has no time zone")
    return int(created.timestamp())
