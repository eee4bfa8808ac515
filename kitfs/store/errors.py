"""Every error of the store, one class per fact, below the categories of ``kitfs.errors``."""

from __future__ import annotations

from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import BusyError, IntegrityError, KitfsError, NotFoundError, UsageError


class StoreNotFound(NotFoundError):
    """No store at a place, and none was to be made."""

    hint = "import or pack a ModelKit first, or name the store with --home"

    def __init__(self, home: Path) -> None:
        super().__init__(f"no store at {home}")
        self.home = home


class StoreVersionUnsupported(UsageError):
    """The store has a format that this program does not know."""

    hint = "use the version of kitfs that wrote the store, or a newer one"

    def __init__(self, home: Path, found: str, known: int) -> None:
        super().__init__(f"the store at {home} has format {found!r}; this kitfs knows formats up to {known}")
        self.home = home
        self.found = found
        self.known = known


class StoreOwnerMismatch(UsageError):
    """The store belongs to another user."""

    hint = "use a store of your own (--home), or act as its owner"

    def __init__(self, home: Path, owner_uid: int, uid: int) -> None:
        super().__init__(f"the store at {home} belongs to uid {owner_uid}, not to uid {uid}")
        self.home = home
        self.owner_uid = owner_uid
        self.uid = uid


class StoreNotUsable(UsageError):
    """A place can not hold a store: it is a file, or a folder with other things in it."""

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(f"{home} can not be used as a store: {reason}")
        self.home = home
        self.reason = reason


class StoreWriteFailed(KitfsError):
    """Writing below the store failed; what was being written is not there."""

    hint = "look at the free space and the health of the disk, then run the command again"

    def __init__(self, path: Path, action: str, reason: str) -> None:
        super().__init__(f"{action} {path}: {reason}")
        self.path = path
        self.action = action
        self.reason = reason


class BlobNotFound(NotFoundError):
    """No blob of this digest in the store."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is not in the store")
        self.digest = digest


class MemberNotFound(NotFoundError):
    """No materialised member of this digest in the store."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"member {digest} is not in the store")
        self.digest = digest


class ManifestNotFound(NotFoundError):
    """No manifest of this digest in the store."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"ModelKit {digest} is not in the store")
        self.digest = digest


class LayerNotIndexed(NotFoundError):
    """The layer has no table of contents in the index."""

    hint = "run kitfs fsck --rebuild-index, or import the ModelKit again"

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"layer {digest} has no table of contents in the store")
        self.digest = digest


class TagNotFound(NotFoundError):
    """The repository has no such tag."""

    def __init__(self, repository: str, tag: str) -> None:
        super().__init__(f"{repository}:{tag} is not in the store")
        self.repository = repository
        self.tag = tag


class TagTaken(BusyError):
    """A tag that was to be new and is there.

    Attributes:
        manifest: What it names.
    """

    def __init__(self, repository: str, tag: str, manifest: Digest) -> None:
        shown = f"{repository.removeprefix('localhost/')}:{tag}"
        super().__init__(f"{shown} is there already ({manifest})")
        self.repository = repository
        self.tag = tag
        self.manifest = manifest
        self.hint = "choose another tag, or move this one with --force"


class SessionNotFound(NotFoundError):
    """No session of this id, or its file can not be read."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"no session {session_id!r}")
        self.session_id = session_id


class BlobTooLarge(UsageError):
    """A blob that was to be read whole is larger than the caller's limit."""

    def __init__(self, digest: Digest, size: int, limit: int) -> None:
        super().__init__(f"blob {digest} has {size} bytes; at most {limit} are read here")
        self.digest = digest
        self.size = size
        self.limit = limit


class SizeMismatch(IntegrityError):
    """Content of another size than announced."""

    def __init__(self, expected: int, actual: int, what: str) -> None:
        super().__init__(f"{what} has {actual} bytes, expected {expected}")
        self.expected = expected
        self.actual = actual


class BlobCorrupt(IntegrityError):
    """A blob's file does not hold the bytes its digest names."""

    hint = "import or pull the ModelKit again: that puts the right bytes in place"

    def __init__(self, digest: Digest, reason: str) -> None:
        super().__init__(f"blob {digest} is corrupt: {reason}")
        self.digest = digest
        self.reason = reason


class BlobIsSplit(KitfsError):
    """A blob is kept as a recipe and members, so that no one file is it; ``Store.open_content`` reads it."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is kept in parts and has no file of its own")
        self.digest = digest


class CanNotLink(KitfsError):
    """A file can not become a blob by a hard link; copying it works."""

    def __init__(self, source: Path, reason: str) -> None:
        super().__init__(f"{source} can not be linked into the store: {reason}")
        self.source = source
        self.reason = reason


class ManifestIncomplete(UsageError):
    """A change would record a manifest before all the blobs it needs."""

    def __init__(self, manifest: Digest, missing: Digest) -> None:
        super().__init__(f"ModelKit {manifest} needs blob {missing}, which is not recorded")
        self.manifest = manifest
        self.missing = missing


class LimitExceeded(UsageError):
    """A value beyond a limit of the store."""

    def __init__(self, what: str, value: int, limit: int) -> None:
        super().__init__(f"{what} is {value}; the store's limit is {limit}")
        self.what = what
        self.value = value
        self.limit = limit


class RecordCorrupt(IntegrityError):
    """A record of the index that does not verify; it is never guessed at."""

    hint = "run kitfs fsck"

    def __init__(self, table: str, key: bytes, reason: str) -> None:
        super().__init__(f"index record {table}[{key.hex()[:80]}] is corrupt: {reason}")
        self.table = table
        self.key = key
        self.reason = reason


class IndexCorrupt(IntegrityError):
    """LMDB itself says that its pages are damaged."""

    hint = "run kitfs fsck --rebuild-index"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the index {path} is damaged: {reason}")
        self.path = path
        self.reason = reason


class IndexFailed(KitfsError):
    """LMDB could not do what was asked; nothing was recorded."""

    hint = "look at the free space and the health of the disk, then run the command again"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the index {path} failed: {reason}")
        self.path = path
        self.reason = reason


class IndexInUse(BusyError):
    """A process has the index open, so it can not be replaced."""

    hint = "umount what is mounted from this store (kitfs ps) and let running commands end"

    def __init__(self, path: Path) -> None:
        super().__init__(f"the index {path} is open in another process, a mount's or a command's")
        self.path = path


class IndexFull(IndexFailed):
    """The index has reached its map size; nothing was recorded."""

    hint = "run kitfs gc"


class TagsLogCorrupt(IntegrityError):
    """A line inside ``tags.log``, not its last one, does not verify."""

    hint = "run kitfs fsck"

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"{path}: the line at offset {offset} is corrupt: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class IndexDisagrees(IntegrityError):
    """The index's tables, its counts and ``tags.log`` do not tell the same story; nothing is swept."""

    hint = "run kitfs fsck"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("nothing was removed, because the index does not agree with itself: " + "; ".join(problems))
        self.problems = problems


class LeaseEnded(BusyError):
    """A lease was used after it had been closed: what it held may be gone."""

    def __init__(self, purpose: str) -> None:
        super().__init__(f"the lease of {purpose!r} has ended")
        self.purpose = purpose
