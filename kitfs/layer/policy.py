"""When the members of a layer become files of their own (lazy.md 4)."""

from __future__ import annotations

import enum


class Materialise(enum.StrEnum):
    """The policy of a mount.

    ``auto``: what is read, while there is room. ``never``: nothing, reads are decoded each time. ``always``: what is
    opened, whole.
    """

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"
