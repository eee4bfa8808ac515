"""The marks that overlays leave in an upper directory, as xattrs and as names.

Used by ``upper``. Those of the kernel's overlayfs (``Documentation/filesystems/overlayfs.rst``) lie below
``trusted.overlay.``, or with ``userxattr`` below ``user.overlay.``; fuse-overlayfs (``main.c`` of 1.10 to 1.16) has its
own and understands some of the kernel's::

    whiteout   a character device 0:0; kernel: an empty file with the xattr ``whiteout``; fuse-overlayfs: ``.wh.NAME``
    opaque     a directory's xattr ``opaque`` = y; fuse-overlayfs: ``user.fuseoverlayfs.opaque``, or ``.wh..wh..opq``
    redirect   kernel, on a directory or a metacopy: where it lies in the lower layer, ``/from/its/root`` or a name
    metacopy   kernel, on a file: its bytes are the lower one's, only its attributes are its own
    override   fuse-overlayfs: ``uid:gid:mode`` (octal; 1.15: ``:type`` behind it) instead of the file's own, of the
               kind that the upper directory itself has

``origin``, ``impure``, ``nlink`` and the like say nothing about what is shown, and are not read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Literal, TypeVar

Overlay = Literal["overlay", "fuse-overlayfs"]
"""Which of the two wrote the directory: the kernel's, or fuse-overlayfs."""

WHITEOUT_PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"

OPAQUE, REDIRECT, METACOPY, WHITEOUT, OVERRIDE = "opaque", "redirect", "metacopy", "whiteout", "override"

_KERNEL = {
    prefix + mark: mark
    for prefix in ("trusted.overlay.", "user.overlay.")
    for mark in (OPAQUE, REDIRECT, METACOPY, WHITEOUT)
}
_FUSE = {**{name: mark for name, mark in _KERNEL.items() if mark == OPAQUE}, "user.fuseoverlayfs.opaque": OPAQUE}
_OVERRIDES = ("security.fuseoverlayfs.override_stat", "user.containers.override_stat",
              "user.fuseoverlayfs.override_stat")  # fmt: skip
_TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "pipe": stat.S_IFIFO,
          "socket": stat.S_IFSOCK, "block": stat.S_IFBLK, "char": stat.S_IFCHR}  # fmt: skip

_ABSENT = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EACCES})
"""EACCES: who may not read a file may not read its ``user.`` xattrs, and an overlay of theirs neither."""

Marks = dict[str, bytes]
"""Their values."""

_T = TypeVar("_T")


class MarkReader:
    """Reads the marks of one upper directory.

    Attributes:
        reads_names: Whether names that begin with ``.wh.`` are marks.
    """

    def __init__(self, overlay: Overlay | None, root: bytes) -> None:
        """Look at the upper directory itself.

        Args:
            overlay: What wrote it; None understands the marks of both.
            root: Its path.

        Raises:
            OSError: when its xattrs can not be read.
        """
        known = {"overlay": _KERNEL, "fuse-overlayfs": _FUSE, None: {**_KERNEL, **_FUSE}}
        self._names = dict(known[overlay])
        self.reads_names = overlay != "overlay"
        if self.reads_names:
            there = _list(root, follow=True)
            self._names.update(dict.fromkeys([name for name in _OVERRIDES if name in there][:1], OVERRIDE))

    def read(self, place: bytes, *, follow: bool = False) -> Marks:
        """The marks of a file or directory.

        Args:
            place: Its path.
            follow: Whether a link at the end of that is followed, as one in ``/proc/self/fd`` has to be.

        Raises:
            OSError: when they can not be read; not where the file system has none.
        """
        there = _list(place, follow=follow)
        marks: Marks = {}
        for name in (name for name in self._names if name in there):
            value = _unless_absent(lambda: os.getxattr(place, name, follow_symlinks=follow))  # noqa: B023  called at once
            if value is not None:
                marks.setdefault(self._names[name], value)
        return marks


def _list(place: bytes, *, follow: bool) -> list[str]:
    return _unless_absent(lambda: os.listxattr(place, follow_symlinks=follow)) or []


def _unless_absent(read: Callable[[], _T]) -> _T | None:
    """What a call gives, or None when it finds nothing there."""
    try:
        return read()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def override_mode(mode: int, value: bytes) -> int:
    """The ``st_mode`` that is shown for a file of ``mode`` with an override.

    Raises:
        ValueError: when it is none.
    """
    _, _, bits, *kind = value.decode("ascii").split(":")
    name = kind[0].partition("-")[0] if kind else ""
    return (_TYPES.get(name) or stat.S_IFMT(mode)) | stat.S_IMODE(int(bits, 8))


def can_read_trusted() -> bool:
    """Whether this process may read ``trusted.`` xattrs: CAP_SYS_ADMIN (bit 21); they look absent otherwise."""
    with open("/proc/self/status", "rb") as status:
        effective = next(line.split()[1] for line in status if line.startswith(b"CapEff:"))
    return bool(int(effective, 16) >> 21 & 1)
