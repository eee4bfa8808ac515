"""What a staging directory is: its record, its parts, and everything that can be wrong with one.

Used by ``kitfs.modelkit.staging``, which makes and changes them and shows these names too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import BusyError, KitfsError, MalformedError, NotFoundError, UsageError
from kitfs.modelkit.nodes import Modes
from kitfs.store import durable
from kitfs.store.layout import Layout
from kitfs.store.staging import RECORD_NAME

OverlayKind = Literal["overlay", "fuse-overlayfs"]

STAGING_VERSION = 1
UPPER_NAME = "upper"
WORK_NAME = "work"
SCRATCH_NAME = ".staging.json.new"
_RECORD_SIZE_MAX = 1 << 20


class StagingNotFound(NotFoundError):
    """A directory that is no staging directory."""

    hint = "kitfs staging list"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is no staging directory")
        self.path = path


class StagingMalformed(MalformedError):
    """A staging directory whose record can not be read, or that lacks a part."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"staging directory {path}: {reason}")
        self.path = path
        self.reason = reason
        self.hint = f"kitfs staging remove {path}"


class StagingUnusable(UsageError):
    """A directory that can not be used for staging as it was asked for."""

    def __init__(self, path: Path, reason: str, hint: str = "") -> None:
        super().__init__(f"{path} can not be the staging directory: {reason}")
        self.path = path
        self.reason = reason
        self.hint = hint


class StagingMounted(BusyError):
    """A staging directory that is mounted, once, and so can not be mounted again, moved or removed."""

    def __init__(self, path: Path, mountpoint: str) -> None:
        super().__init__(f"staging directory {path} is mounted on {mountpoint}")
        self.path = path
        self.mountpoint = mountpoint
        self.hint = f"kitfs umount {mountpoint}   (or name another directory with --staging)"


class StagingHeld(BusyError):
    """Another command is mounting, moving or removing a staging directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another command is busy with the staging directory {path}")
        self.path = path


class StagingChanged(BusyError):
    """A staging directory in which something was changed after it was committed, so that it can not be emptied."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"something was changed in {path} after it was committed")
        self.path = path
        self.hint = "commit again"


class StagingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What ``staging.json`` says.

    Attributes:
        id: Made up when the directory was.
        reference: What it was made over, as it is shown.
        manifests: ``sha256:…`` of the ModelKit, then of every parent.
        uid: Who made it.
        gid: That user's group.
        overlay: Whose format ``upper`` has.
        store: The store that its ModelKit is in, absolute.
        modes: Which permission bits the lower layer shows.
        created_s: When, seconds since the epoch.
        is_stale: Whether what ``upper`` holds belongs to what it was made over before, and is to go.
        version: Format of this record.
    """

    id: str
    reference: str
    manifests: list[str]
    uid: int
    gid: int
    overlay: OverlayKind
    store: str
    modes: str
    created_s: int
    is_stale: bool = False
    version: int = STAGING_VERSION


@dataclass(frozen=True, slots=True)
class Staging:
    """One staging directory.

    Attributes:
        path: Where it lies, its real path.
        record: What it is for.
    """

    path: Path
    record: StagingRecord

    @property
    def upper(self) -> Path:
        """The directory of what was changed."""
        return self.path / UPPER_NAME

    @property
    def work(self) -> Path:
        """The overlay's own directory."""
        return self.path / WORK_NAME

    @property
    def manifests(self) -> list[Digest]:
        """The ModelKit, then every parent: what ``reopen`` needs."""
        return [Digest.parse(manifest) for manifest in self.record.manifests]

    @property
    def layout(self) -> Layout:
        """The store that it belongs to."""
        return Layout(Path(self.record.store))

    @property
    def shown_modes(self) -> Modes:
        """Which permission bits its lower layer shows."""
        return Modes(self.record.modes)

    @property
    def identity(self) -> str:
        """What tells its mounts from others', under whatever name it lies."""
        status = self.upper.lstat()
        return f"{status.st_dev}:{status.st_ino}"


def read_record(path: Path) -> StagingRecord:
    """The record of the staging directory ``path``.

    Raises:
        StagingNotFound: when it is none; a file of the same name without an ``upper`` beside it is somebody else's.
        StagingMalformed: when its record can not be read.
    """
    try:
        with open(path / RECORD_NAME, "rb") as file:
            raw = file.read(_RECORD_SIZE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        raise StagingNotFound(path) from None
    except OSError as error:
        raise _refusal(path, f"can not be read ({error.strerror})") from None
    try:
        record = msgspec.json.decode(raw, type=StagingRecord)
        digests = [Digest.parse(manifest) for manifest in record.manifests]
        Modes(record.modes)
    except (msgspec.DecodeError, DigestMalformed, ValueError) as error:
        raise _refusal(path, f"is none ({error})") from None
    if record.version > STAGING_VERSION:
        raise StagingMalformed(path, f"its format {record.version} is newer than {STAGING_VERSION}")
    if not digests:
        raise StagingMalformed(path, f"its {RECORD_NAME} names no ModelKit")
    return record


def _refusal(path: Path, reason: str) -> KitfsError:
    with contextlib.suppress(PermissionError):
        if (path / UPPER_NAME).is_dir():
            return StagingMalformed(path, f"its {RECORD_NAME} {reason}")
    return StagingNotFound(path)


def write_record(staging: Staging) -> None:
    """Write a staging directory's record whole; on disk when this returns.

    Raises:
        StoreWriteFailed: when writing failed; the record is then what it was.
    """
    scratch = staging.path / SCRATCH_NAME
    durable.remove(scratch)
    durable.write_file(staging.path / RECORD_NAME, msgspec.json.encode(staging.record), scratch=scratch, mode=0o600)
