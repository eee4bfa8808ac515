"""Where everything lies below a store's home, and how a new home is made.

Used by every module of the store. Knows names and modes, never contents. The tree (store.md 1)::

    version                        one line; written last, so a home without it is not a store yet
    blobs/sha256/<ab>/<hex>        published bytes, 0444, never changed
    recipes/sha256/<ab>/<hex>      a split blob without its members' bytes, 0444, never changed
    members/sha256/<ab>/<hex>      a member's bytes, 0444; part of a split blob, or can be made anew from its layer
    partial/<boot id>/             members being put together from spans (``partials``)
    ingest/<lease id>.<n>          writes in progress; ingest/trash-… is on its way out
    sessions/<id>.json .holds .names
    staging/<name> .json           writable directories over ModelKits, or links to them (``staging``); made when needed
    leases/<id>                    digests that a running operation holds, one a line
    gc.lock                        shared by who takes hold of content, exclusive while GC decides
    tags.log                       every tag change
    index/                         the LMDB environment
    index.new/                     another one, while the index is made anew
    quarantine/                    what a repair took away: corrupt blobs, a damaged tags.log, an old index

``<ab>`` is the first byte of the digest in hexadecimal; all 256 directories of each kind are made with the store,
so that a rename into one never has to make it. One fsync of the directory above makes all 256 entries durable, and
whoever places a file in one syncs that one: 12 fsyncs for a new store instead of 780. A store that an earlier program
of the same format made has no ``recipes/``: it is made when such a store is opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kitfs.digest import Digest
from kitfs.store import durable
from kitfs.store.errors import (
    StoreNotFound,
    StoreNotUsable,
    StoreOwnerMismatch,
    StoreVersionUnsupported,
    StoreWriteFailed,
)

FORMAT_VERSION = 1
"""The format that this program writes and the newest that it reads."""

_VERSION_SIZE_MAX = 64
_FOLDERS = ("ingest", "partial", "sessions", "leases", "index")
_CONTENT = ("blobs", "recipes", "members")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store.

    Attributes:
        home: The store's directory.
    """

    home: Path

    @property
    def version(self) -> Path:
        """The file with the format version."""
        return self.home / "version"

    @property
    def ingest(self) -> Path:
        """The folder of writes in progress."""
        return self.home / "ingest"

    @property
    def partial(self) -> Path:
        """The folder of members being put together, one folder below it for each boot."""
        return self.home / "partial"

    @property
    def downloads(self) -> Path:
        """The folder of blobs that arrive; made when it is needed."""
        return self.home / "downloads" / "sha256"

    @property
    def sessions(self) -> Path:
        """The folder of session records."""
        return self.home / "sessions"

    @property
    def staging(self) -> Path:
        """The folder of staging directories and their registrations; made when it is needed."""
        return self.home / "staging"

    @property
    def leases(self) -> Path:
        """The folder of leases."""
        return self.home / "leases"

    @property
    def gc_lock(self) -> Path:
        """The file whose flock orders taking hold of content against GC's decision."""
        return self.home / "gc.lock"

    @property
    def tags_log(self) -> Path:
        """The log of tag changes."""
        return self.home / "tags.log"

    @property
    def index(self) -> Path:
        """The folder of the LMDB environment."""
        return self.home / "index"

    @property
    def index_new(self) -> Path:
        """The folder of an environment that is being built in place of the index."""
        return self.home / "index.new"

    @property
    def quarantine(self) -> Path:
        """Where a repair moves corrupt blobs; made when it is needed."""
        return self.home / "quarantine"

    def content(self, kind: str) -> Path:
        """The folder of ``blobs``, ``recipes`` or ``members``."""
        return self.home / kind / "sha256"

    def blob(self, digest: Digest) -> Path:
        """Where a blob's file lies."""
        return self.home / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def recipe(self, digest: Digest) -> Path:
        """Where the recipe of a split blob lies."""
        return self.home / "recipes" / "sha256" / digest.hex[:2] / digest.hex

    def blob_in_form(self, digest: Digest, form: str) -> Path:
        """Where a blob's file lies, or its recipe when the form is ``split``."""
        return self.recipe(digest) if form == "split" else self.blob(digest)

    def member(self, digest: Digest) -> Path:
        """Where a member's file lies."""
        return self.home / "members" / "sha256" / digest.hex[:2] / digest.hex


def open_layout(home: Path, *, create: bool) -> Layout:
    """Check that ``home`` is a store of ours, making it first where asked.

    Returns with every directory on disk (fsynced) when the store was made here.

    Raises:
        StoreNotFound: when there is none and ``create`` is false.
        StoreNotUsable: when something else lies there.
        StoreOwnerMismatch: when it belongs to another uid.
        StoreVersionUnsupported: when its format is newer, or can not be read.
        StoreWriteFailed: when making it failed.
    """
    layout = Layout(home)
    try:
        status = home.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise StoreNotFound(home) from None
        _create(layout)
        status = home.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise StoreNotUsable(home, "it is not a directory")
    if status.st_uid != os.geteuid():
        raise StoreOwnerMismatch(home, status.st_uid, os.geteuid())
    try:
        _check_version(layout)
    except FileNotFoundError:
        if not create:
            raise StoreNotFound(home) from None
        _create(layout)
        _check_version(layout)
    if not (layout.content("recipes") / "ff").is_dir():  # the last one that is made
        with contextlib.suppress(StoreWriteFailed):  # a full disk keeps nobody from reading
            _make_content(layout, "recipes")
            durable.sync_directory(home)
    return layout


def _check_version(layout: Layout) -> None:
    with open(layout.version, "rb") as file:
        text = file.read(_VERSION_SIZE_MAX).decode("ascii", "replace").strip()
    if not text.isdecimal() or not 1 <= int(text) <= FORMAT_VERSION:
        raise StoreVersionUnsupported(layout.home, text, FORMAT_VERSION)


def _create(layout: Layout) -> None:
    """Make what is missing of a store; safe when two processes do it at once, and after a crash half way."""
    home = layout.home
    with durable.naming(home, "making"):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {*_FOLDERS, *_CONTENT, "gc.lock", "tags.log"}
    strangers = sorted(
        name
        for name in (entry.name for entry in home.iterdir())
        if name not in known and not name.startswith(("version", ".version-"))
    )
    if strangers:
        raise StoreNotUsable(home, f"it holds other things ({strangers[0]!r})")
    with durable.naming(home, "making folders in"):
        home.chmod(0o700)
        for name in _FOLDERS:
            (home / name).mkdir(mode=0o700, exist_ok=True)
        for path in (layout.gc_lock, layout.tags_log):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for kind in _CONTENT:
        _make_content(layout, kind)
    for name in _FOLDERS:
        durable.sync_directory(home / name)
    scratch = home / f".version-{os.getpid()}-{os.urandom(4).hex()}"
    durable.write_file(layout.version, f"{FORMAT_VERSION}\n".encode(), scratch=scratch, mode=0o600)
    durable.sync_directory(home.parent)


def _make_content(layout: Layout, kind: str) -> None:
    """Make the folders of one kind, their entries on disk when this returns; the caller syncs the home."""
    with durable.naming(layout.home, "making folders in"):
        (layout.home / kind).mkdir(mode=0o700, exist_ok=True)
        layout.content(kind).mkdir(mode=0o700, exist_ok=True)
        for number in range(256):
            (layout.content(kind) / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
    durable.sync_directory(layout.content(kind))
    durable.sync_directory(layout.content(kind).parent)
