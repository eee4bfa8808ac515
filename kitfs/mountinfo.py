"""The mounts of this namespace as mountinfo has them, and which of them are overlays.

Used by ``kitfs.mounting`` and ``kitfs.overlay``, which make and unmake mounts, and by ``kitfs.modelkit.staging``, which
has to know what lies behind a mount point. Reads ``/proc`` alone: it stats, opens and lists no mount, because that
blocks for as long as nobody serves it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

KERNEL_OVERLAY = "overlay"
FUSE_OVERLAY = "fuse.fuse-overlayfs"

LOWER_FOLDER = "lower"
"""The folder in the runtime directory where the ModelKits below overlays are mounted."""

_SESSION = re.compile(r"[0-9a-f]{16}")
_MOUNTINFO = Path("/proc/self/mountinfo")
_PROC = Path("/proc")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_OPTION = re.compile(r"(?:[^,\\]|\\.)+")
_BACKSLASHED = re.compile(r"\\(.)")

T = TypeVar("T")


class MountLine(NamedTuple):
    """One line of mountinfo (proc(5)).

    Attributes:
        number: The mount's number in this namespace.
        device: ``major:minor``; the same in every namespace, and the name of its bdi.
        mountpoint: Where it is mounted.
        kind: Type of the file system, with its subtype.
        source: What is mounted.
        flags: Options of the mount.
        options: Those of the file system, as they stand there, escapes included.
    """

    number: int
    device: str
    mountpoint: Path
    kind: str
    source: str
    flags: frozenset[str]
    options: str


def read_mounts() -> list[MountLine]:
    """All mounts in this mount namespace, later ones (on top) last."""
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def parse_mountinfo(raw: bytes) -> list[MountLine]:
    """The mounts in ``/proc/<pid>/mountinfo``; lines of another form are passed over."""
    return list(_iter_lines(raw))


def _iter_lines(raw: bytes) -> Iterator[MountLine]:
    for line in raw.splitlines():
        fields, separator, tail = line.partition(b" - ")
        place = fields.split(b" ")
        kind = tail.split(b" ")
        if not separator or len(place) < 6 or len(kind) < 2 or not place[0].isdigit():
            continue
        options = os.fsdecode(kind[2]) if len(kind) > 2 else ""
        flags = frozenset(os.fsdecode(place[5]).split(","))
        names = [_unescape(field) for field in (place[2], place[4], *kind[:2])]
        yield MountLine(int(place[0]), names[0], Path(names[1]), names[2], names[3], flags, options)


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match.group(1), 8) & 0xFF]), field))


class Overlay(NamedTuple):
    """A mounted overlay of one lower directory.

    Attributes:
        mount: Its line of mountinfo.
        lower: The lower directory.
        upper: The upper directory.
    """

    mount: MountLine
    lower: Path
    upper: Path

    @property
    def session(self) -> str | None:
        """The session whose mount it lies over, or None: nothing of kitfs."""
        return find_lower_session(self.lower)


def find_lower_session(path: Path) -> str | None:
    """The session whose mount belongs at a path, when that is the place of a lower layer: ``lower/<session>``."""
    is_lower = path.parent.name == LOWER_FOLDER and _SESSION.fullmatch(path.name) is not None
    return path.name if is_lower else None


def find_overlays() -> list[Overlay]:
    """The overlays in this mount namespace, later ones last: the kernel's, and those of running fuse-overlayfs."""
    lines = [line for line in read_mounts() if line.kind in (KERNEL_OVERLAY, FUSE_OVERLAY)]
    served = _read_served() if any(line.kind == FUSE_OVERLAY for line in lines) else {}
    return list(iter_overlays(lines, served))


def iter_overlays(lines: Iterable[MountLine], served: Mapping[tuple[Path, str], str]) -> Iterator[Overlay]:
    """The overlays among some mounts. The kernel shows paths as they were given: with backslashes, then in octal.

    Args:
        lines: The mounts.
        served: The options of processes of fuse-overlayfs, by mount point and uid.
    """
    for line in lines:
        options = [(name, _unescape(os.fsencode(value))) for name, value in _split_options(line.options)]
        if line.kind == FUSE_OVERLAY:
            options = list(_split_options(served.get((line.mountpoint, dict(options).get("user_id", "")), "")))
        values = {name: _BACKSLASHED.sub(r"\1", value) for name, value in options}
        if "lowerdir" in values and "upperdir" in values:
            yield Overlay(line, Path(values["lowerdir"]), Path(values["upperdir"]))


def _split_options(text: str) -> Iterator[tuple[str, str]]:
    for option in _OPTION.findall(text):
        name, _, value = option.partition("=")
        yield name, value


def _read_served() -> dict[tuple[Path, str], str]:
    """The options of running processes of fuse-overlayfs, by mount point and uid.

    It puts nothing of its own into mountinfo; and such a mount lives no longer than its process.
    """
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == b"fuse-overlayfs" and b"-o" in words[:-2]:
                options = os.fsdecode(words[words.index(b"-o") + 1])
                found[Path(os.fsdecode(words[-2])), str(entry.stat().st_uid)] = options
    return found


def find_at(path: Path, mounts: Iterable[tuple[Path, T]]) -> T | None:
    """What is mounted at ``path``, the topmost, or None.

    Args:
        path: May be relative or lead through links; its last component is not looked at while it is a mount point.
        mounts: Mount points with what is mounted there, later ones on top.
    """
    places: Mapping[Path, T] = dict(mounts)
    literal = absolute(path)
    if literal in places:
        return places[literal]
    found = places.get(real_parent(literal))
    return found if found is not None else places.get(Path(os.path.realpath(literal)))


def absolute(path: Path) -> Path:
    """The path from the root, without ``.``, ``..`` and doubled slashes; no link is followed."""
    return Path(os.path.normpath(Path.cwd() / path))


def real_parent(path: Path) -> Path:
    """The path with its folder's links resolved, its last component left alone."""
    return Path(os.path.realpath(path.parent), path.name)
