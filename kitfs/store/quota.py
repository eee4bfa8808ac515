"""How much of the disk members may take: what a setting says, and what that comes to on this file system.

Used by ``Store.make_room`` and, for the text, by whoever reads a setting. Imports nothing of the store. Only bytes
that can be made anew are bounded; what was published is not.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from kitfs.errors import UsageError

FREE_SHARE = 20
"""One part in so many of the file system stays free for others, whatever the quota."""

FREE_SIZE_MAX = 20 << 30
"""But no more than this: 5 % of a disk of 8 TB would be 400 GB that nobody uses."""

_TEXT = r"(\d{1,18}(?:\.\d{1,6})?)\s*(%|[KMGTP]?(?:i?B)?)"
_UNITS = "KMGTP"


class QuotaMalformed(UsageError):
    """A text that is no size.

    Attributes:
        text: The text.
    """

    hint = "a size is a number of bytes, 100G (powers of 1024), 80% (of the file system), or unlimited"

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not a size")
        self.text = text


class Quota(NamedTuple):
    """A bound on the bytes of members that can be made anew.

    Attributes:
        size: Bytes, or None.
        share: Part of the file system, 0 to 1, or None.
    """

    size: int | None = None
    share: float | None = None

    def limit(self, used: int, disk: os.statvfs_result) -> int:
        """How many bytes they may take; may be below 0, and below what they take now.

        Args:
            used: Bytes that they take now.
            disk: Their file system.
        """
        total = disk.f_blocks * disk.f_frsize
        keep_free = min(total // FREE_SHARE, FREE_SIZE_MAX)
        limits = [used + disk.f_bavail * disk.f_frsize - keep_free]
        if self.size is not None:
            limits.append(self.size)
        if self.share is not None:
            limits.append(int(total * self.share))
        return min(limits)


def parse_quota(text: str) -> Quota:
    """Read a setting: bytes, ``100G``, ``1.5TiB``, ``80%`` or ``unlimited``; an empty text is ``unlimited``.

    Raises:
        QuotaMalformed: when it is neither.
    """
    if text.strip().lower() in ("", "unlimited"):
        return Quota()
    found = re.fullmatch(_TEXT, text.strip(), re.IGNORECASE | re.ASCII)
    if found is None:
        raise QuotaMalformed(text)
    number, unit = float(found[1]), found[2].upper()
    if unit == "%":
        if number > 100:
            raise QuotaMalformed(text)
        return Quota(share=number / 100)
    if unit in ("", "B", "IB"):
        if "." in found[1] or unit == "IB":
            raise QuotaMalformed(text)
        return Quota(size=int(found[1]))
    return Quota(size=int(number * 1024 ** (_UNITS.index(unit[0]) + 1)))
