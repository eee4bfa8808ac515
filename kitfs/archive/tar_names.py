"""Which paths an archive may hold: relative, bounded, each once, no file used as a directory.

`tar_toc` is the only user; one `PathSet` belongs to one archive. Memory is bounded by the two totals of
`TocLimits`, implied directories counted (one 4096-byte path implies up to 2047).
"""

from __future__ import annotations

from dataclasses import dataclass

from kitfs.archive.tar_member import MemberKind, TarMalformed

_IMPLIED = 2
_NO_NAMES = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class TocLimits:
    """Bounds of one archive.

    Attributes:
        member_count: Members, and directories that they imply.
        path_size: Bytes of one path (Linux PATH_MAX).
        component_size: Bytes of one path component (Linux NAME_MAX).
        path_total_size: Bytes of all paths, implied directories counted.
        extension_size: Bytes of one extended header (Go reads no larger one either).
    """

    member_count: int = 1 << 21
    path_size: int = 4096
    component_size: int = 255
    path_total_size: int = 256 << 20
    extension_size: int = 1 << 20


class PathSet:
    """The paths seen so far in one archive."""

    __slots__ = ("_directory", "_kinds", "_limits", "_total_size")

    def __init__(self, limits: TocLimits) -> None:
        self._limits = limits
        self._kinds: dict[bytes, int] = {}
        self._total_size = 0
        self._directory = b""  # of the member before, clean; a loop over many files skips what is known of it

    def add(self, name: bytes, kind: MemberKind, offset: int) -> bytes:
        """Clean a member's name and take it in.

        Args:
            name: The name as recorded.
            kind: What the member is.
            offset: Its header, for the error.

        Returns:
            The clean path; empty for a directory that is the root itself.

        Raises:
            TarMalformed: when the path leaves the root, is empty or too long, occurred before, or a file is
                used as a directory; when there are too many.
        """
        kinds = self._kinds
        head, _, last = name.rpartition(b"/")
        if head and head == self._directory and self._is_plain(name, last) and name not in kinds:
            self._put(name, kind, name, offset)
            return name
        path = self._clean(name, kind, offset)
        if not path:
            return path
        known = kinds.get(path)
        if known is None:
            self._add_parents(path, name, offset)
            self._put(path, kind, name, offset)
            self._directory = path.rpartition(b"/")[0]
        elif known == _IMPLIED and kind is MemberKind.DIRECTORY:
            kinds[path] = kind
        elif known == _IMPLIED:
            raise TarMalformed(offset, "file at the path of a directory", name)
        else:
            raise TarMalformed(offset, "path occurs twice", name)
        return path

    def _is_plain(self, name: bytes, last: bytes) -> bool:
        """Whether a name in the directory of the one before is clean as it is."""
        limits = self._limits
        return len(name) <= limits.path_size and len(last) <= limits.component_size and last not in _NO_NAMES

    def _clean(self, name: bytes, kind: MemberKind, offset: int) -> bytes:
        if name.startswith(b"/"):
            raise TarMalformed(offset, "absolute path", name)
        if len(name) > self._limits.path_size:
            raise TarMalformed(offset, f"path longer than {self._limits.path_size} bytes", name)
        parts = name.split(b"/")
        if not name or (kind is MemberKind.FILE and parts[-1] in (b"", b".")):
            raise TarMalformed(offset, "file without a name", name)
        clean = [part for part in parts if part not in (b"", b".")]
        if b".." in clean:
            raise TarMalformed(offset, "path with a '..' component", name)
        if max(map(len, clean), default=0) > self._limits.component_size:
            raise TarMalformed(offset, f"path component longer than {self._limits.component_size} bytes", name)
        return b"/".join(clean)

    def _add_parents(self, path: bytes, name: bytes, offset: int) -> None:
        at = path.rfind(b"/")
        while at > 0:
            parent = path[:at]
            known = self._kinds.get(parent)
            if known == MemberKind.FILE:
                raise TarMalformed(offset, "file used as a directory", name)
            if known is not None:
                return
            self._put(parent, _IMPLIED, name, offset)
            at = path.rfind(b"/", 0, at)

    def _put(self, path: bytes, kind: int, name: bytes, offset: int) -> None:
        self._kinds[path] = kind
        self._total_size += len(path)
        if len(self._kinds) > self._limits.member_count or self._total_size > self._limits.path_total_size:
            raise TarMalformed(offset, "too many members", name)
