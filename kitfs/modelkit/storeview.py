"""The whole store as ``/repository/tag/…``: what ``kitfs mount --all`` shows.

Above a tag everything follows the store's tags and may be believed for a second only; a tag's own tree is immutable.
A directory is identified by its path and a tag's by path and manifest, so a moved tag is a new inode while an open
tree stays what it was. Every number that was given out is appended to the session's names file, before it is given,
so that a successor of the worker gives the same ones.

Thread-safe: the lock covers dictionaries and one append to the names file, never a tree being built.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.modelkit.resolve import find_manifest, reopen, resolve
from kitfs.modelkit.served import Attributes, NativeShare, NotADirectory, OpenFile, ServedKit
from kitfs.modelkit.sessions import ALL_INODES
from kitfs.modelkit.tree import NodeKind, NodeNotFound, build_tree
from kitfs.modelkit.view import ROOT, Statistics, owner_of, policy_of
from kitfs.oci.manifest import parse_manifest
from kitfs.oci.reference import DEFAULT_HOST, UNNAMED_REPOSITORY, Reference

if TYPE_CHECKING:
    from kitfs.store.backing import Backing
    from kitfs.store.sessions import HeldSession
    from kitfs.store.store import Store

LOCAL = f"{DEFAULT_HOST}/"
TIMEOUT_S = 1.0


class TagKey(msgspec.Struct, frozen=True, array_like=True):
    """One tag at one time: the same tag moved elsewhere is another."""

    repository: str
    tag: str
    manifest: str


class Name(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the session's names file: numbers that were given out.

    Attributes:
        first: The first number.
        count: How many.
        path: Of a directory above the tags, joined by ``/``.
        tag: Of a tag's directory, or of the nodes below it.
        manifests: Of the nodes below a tag: what the tag was resolved to, parents included.
    """

    first: int
    count: int = 1
    path: str | None = None
    tag: TagKey | None = None
    manifests: list[str] | None = None


@dataclass(slots=True)
class Directory:
    """A directory above the tags."""

    path: str
    entries: dict[str, str | TagKey] = field(default_factory=dict)
    """Name to the path of a directory, or to a tag."""


def build_directories(tags: Iterator[tuple[str, str, Digest]]) -> dict[str, Directory]:
    """All directories above the tags by path; the root's is empty.

    Args:
        tags: Repository, tag and manifest.
    """
    found = list(tags)
    directories = {"": Directory("")}
    for repository, _, _ in found:
        _add_components(directories, _shown_path(repository))
    for repository, tag, manifest in found:
        entries = directories[_shown_path(repository)].entries
        entries[f":{tag}" if tag in entries else tag] = TagKey(repository, tag, str(manifest))
    return directories


def read_directories(store: Store) -> dict[str, Directory]:
    """All directories above the tags that a store has now."""
    tags = ((name, tag, record.manifest) for name, tag, record in store.iter_tags() if name != UNNAMED_REPOSITORY)
    return build_directories(tags)


def _shown_path(repository: str) -> str:
    return repository.removeprefix(LOCAL)


def _add_components(directories: dict[str, Directory], path: str) -> None:
    parent = ""
    for name in path.split("/"):
        child = f"{parent}/{name}" if parent else name
        if child not in directories:
            directories[child] = Directory(child)
            directories[parent].entries[name] = child
        parent = child


class StoreView:
    """The whole store by inode number.

    Attributes:
        blocking: True: a lookup may read tags or build a tree.
        negative_timeout_s: One second: a tag may appear.
    """

    blocking = True
    negative_timeout_s = TIMEOUT_S

    def __init__(self, store: Store, session: HeldSession) -> None:
        self._store = store
        self._session = session
        self._owner = owner_of(session.record)
        self._materialise = policy_of(session.record)
        self._lock = threading.Lock()
        self._next = session.record.inode_first
        self._end = session.record.inode_first + ALL_INODES
        self._paths: dict[str, int] = {"": ROOT}
        self._tags: dict[TagKey, int] = {}
        self._above: dict[int, str | TagKey] = {ROOT: ""}
        self._trees: dict[TagKey, Name] = {}
        self._firsts: list[int] = []
        self._tree_of_first: dict[int, TagKey] = {}
        self._kits: dict[TagKey, ServedKit] = {}
        self._directories: tuple[int, dict[str, Directory]] = (-1, {})
        for line in session.read_names():
            self._remember(msgspec.json.decode(line, type=Name))

    def attributes(self, inode: int) -> Attributes:
        """What stat shows of an inode.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        above = self._above.get(inode)
        if above is None:
            kit = self._kit_of(inode)
            return kit.attributes(kit.node(inode))
        return self._directory_attributes(inode, above)

    def lookup(self, inode: int, name: bytes) -> Attributes:
        """The entry of a directory with a name.

        Raises:
            NodeNotFound: when there is none, or no longer.
            NotADirectory: when the inode is not a directory.
        """
        if name == b".":
            return self.attributes(inode)
        if name == b"..":
            return self.attributes(self._parent(inode))
        above = self._above.get(inode)
        if isinstance(above, str):
            entry = self._entries(above).get(name.decode("utf-8", "surrogateescape"))
            if entry is None:
                raise NodeNotFound(name)
            return self._entry_attributes(entry)
        return self._kit_of(inode).lookup(inode, name)

    def iter_directory(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries of a directory whose inode is above ``after``, ascending.

        Raises:
            NotADirectory: when the inode is not a directory.
        """
        above = self._above.get(inode)
        if not isinstance(above, str):
            return self._kit_of(inode).iter_directory(inode, after)
        entries = [(name, self._entry_attributes(entry)) for name, entry in self._entries(above).items()]
        entries.sort(key=lambda entry: entry[1].inode)
        return (
            (name.encode("utf-8", "surrogateescape"), attributes, attributes.inode)
            for name, attributes in entries
            if attributes.inode > after
        )

    def read_link(self, inode: int) -> bytes:
        """A symlink's target.

        Raises:
            IsADirectory: when the inode is not a symlink.
        """
        return self._kit_of(inode).read_link(inode)

    def open(self, inode: int) -> OpenFile:
        """Open a file for reading; nothing is decoded yet.

        Raises:
            IsADirectory: when the inode is a directory.
        """
        return self._kit_of(inode).open(inode)

    def state(self, inode: int) -> str | None:
        """How a file would be read now; None for what is no file.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return None if inode in self._above else self._kit_of(inode).state(inode)

    def find_backing(self, inode: int, *, renew: bool = False) -> Backing | None:
        """The trusted plain file in the store that is the file shown; see ``ServedKit.find_backing``.

        Raises:
            NodeNotFound: when there is no such inode.
        """
        return None if inode in self._above else self._kit_of(inode).find_backing(inode, renew=renew)

    def warm(self) -> None:
        """Nothing: which ModelKits are wanted is not known."""

    def measure_native(self) -> NativeShare:
        """How much is plain files in the store, of what has been looked at so far.

        Raises:
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        measured = [kit.measure_native() for kit in list(self._kits.values())]
        native, size = sum(share.native for share in measured), sum(share.size for share in measured)
        return NativeShare(native, size, any(share.is_begun for share in measured))

    def statistics(self) -> Statistics:
        """Size and number of what has been looked at so far."""
        kits = list(self._kits.values())
        return Statistics(sum(kit.tree.size for kit in kits), sum(len(kit.tree) for kit in kits))

    def _entries(self, path: str) -> dict[str, str | TagKey]:
        generation = self._store.generation()
        if self._directories[0] != generation:
            self._directories = (generation, read_directories(self._store))
        directory = self._directories[1].get(path)
        return directory.entries if directory else {}

    def _entry_attributes(self, entry: str | TagKey) -> Attributes:
        return self._directory_attributes(self._number(entry), entry)

    def _directory_attributes(self, inode: int, above: str | TagKey) -> Attributes:
        mtime_s = self._created_s(above) if isinstance(above, TagKey) else 0
        return Attributes(
            inode=inode,
            kind=NodeKind.DIRECTORY,
            mode=0o555,
            size=0,
            mtime_ns=mtime_s * 1_000_000_000,
            uid=self._owner.uid,
            gid=self._owner.gid,
            nlink=2,
            timeout_s=TIMEOUT_S,
        )

    def _created_s(self, key: TagKey) -> int:
        kit = self._kits.get(key)
        if kit is not None:
            return kit.tree.mtime_s
        try:
            return parse_manifest(self._store.read_blob(Digest.parse(key.manifest))).created_s
        except KitfsError:
            return 0  # a tag whose manifest is damaged is still listed; opening it says what is wrong

    def _parent(self, inode: int) -> int:
        above = self._above.get(inode)
        if above is None:
            return self._kit_of(inode).parent(inode)
        path = above.rpartition("/")[0] if isinstance(above, str) else _shown_path(above.repository)
        return self._number(path)

    def _number(self, entry: str | TagKey) -> int:
        known = self._paths.get(entry) if isinstance(entry, str) else self._tags.get(entry)
        if known is not None:
            return known
        if isinstance(entry, str):
            return self._assign(lambda first: Name(first, path=entry), lambda: self._paths.get(entry))
        return self._assign(lambda first: Name(first, tag=entry), lambda: self._tags.get(entry))

    def _kit_of(self, inode: int) -> ServedKit:
        """The ModelKit that an inode lies in, its tree built when nobody has looked into it yet."""
        key = self._above.get(inode)
        if isinstance(key, str):
            raise NotADirectory(f"inode {inode} is a directory above the tags")
        if key is None:
            place = bisect_right(self._firsts, inode) - 1
            if place < 0:
                raise NodeNotFound(inode)
            key = self._tree_of_first[self._firsts[place]]
        return self._kits.get(key) or self._open_kit(key)

    def _open_kit(self, key: TagKey) -> ServedKit:
        named = self._trees.get(key)
        if named is None:
            named = self._resolve(key)
        digests = [Digest.parse(text) for text in named.manifests or ()]
        tree = build_tree(reopen(self._store, _shown_reference(key), digests), self._store.open_outline,
                          meta=self._session.record.options.meta)  # fmt: skip
        kit = ServedKit(self._store, tree, self._owner, first=named.first, root=self._number(key),
                        materialise=self._materialise)  # fmt: skip
        return self._kits.setdefault(key, kit)

    def _resolve(self, key: TagKey) -> Name:
        reference = Reference(key.repository, key.tag, Digest.parse(key.manifest))
        if find_manifest(self._store, reference) is None:
            raise NodeNotFound(key.tag.encode())
        resolved = resolve(self._store, reference)
        for digest in resolved.digests:
            self._session.hold(digest)
        count = build_tree(resolved, self._store.open_outline, meta=self._session.record.options.meta).stop
        manifests = [str(digest) for digest in resolved.digests]
        self._assign(
            lambda first: Name(first, count, tag=key, manifests=manifests),
            lambda: self._trees[key].first if key in self._trees else None,
        )
        return self._trees[key]

    def _assign(self, make: Callable[[int], Name], find: Callable[[], int | None]) -> int:
        """Give out numbers, once: the line is in the names file before anybody learns them."""
        with self._lock:
            known = find()
            if known is not None:
                return known
            name = make(self._next)
            if name.first + name.count > self._end:
                raise NumbersUsedUp(self._session.record.id)
            self._session.append_name(msgspec.json.encode(name))
            self._remember(name)
            return name.first

    def _remember(self, name: Name) -> None:
        self._next = name.first + name.count
        if name.path is not None:
            self._above[name.first] = name.path
            self._paths[name.path] = name.first
        elif name.tag is not None and name.manifests is None:
            self._above[name.first] = name.tag
            self._tags[name.tag] = name.first
        elif name.tag is not None:
            self._tree_of_first[name.first] = name.tag
            self._trees[name.tag] = name
            self._firsts.append(name.first)


class NumbersUsedUp(KitfsError):
    """A session has given out all inode numbers that were set aside for it."""

    def __init__(self, session: str) -> None:
        super().__init__(f"session {session} has used all of its {ALL_INODES} inode numbers")
        self.hint = "kitfs umount it and mount it again"


def _shown_reference(key: TagKey) -> str:
    return Reference(key.repository, key.tag, None).display
