"""Whether files can be passed through to readers here (fuse.md 3): what is missing, and the line that mends it.

Asked of the daemon by ``kitfs.daemon.overview``, and by ``kitfs doctor`` where none runs. Looks at ``/proc`` and at
what is installed; imports neither trio nor pyfuse3. Whether a store lies on a stacked file system
only an open can tell.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

from kitfs.fuse.interpose import EXTENSION, NO_PASSTHROUGH_VARIABLE

PASSTHROUGH_KERNEL = (6, 9)

CAP_SYS_ADMIN = 21
"""``linux/capability.h``; what makes a backing file known to the kernel needs it."""

SWITCHED_OFF = f"{NO_PASSTHROUGH_VARIABLE}=1 is set"
NOT_BUILT = "the extension was not built when kitfs was installed"
NO_PRIVILEGE = "it needs CAP_SYS_ADMIN"
OLD_KERNEL = f"it needs Linux {'.'.join(map(str, PASSTHROUGH_KERNEL))}"

MENDS = {
    SWITCHED_OFF: f"unset {NO_PASSTHROUGH_VARIABLE}, then kitfs daemon --replace",
    NOT_BUILT: "sudo apt-get install gcc libfuse3-dev pkg-config, install kitfs again, then kitfs daemon --replace",
    NO_PRIVILEGE: "kitfs daemon --replace",
}
"""The line that mends each, where there is one; of ``NO_PRIVILEGE`` for root, for whom it can be."""


def find_obstacle() -> str:
    """Why this process can not have files passed through; empty when it can."""
    if os.environ.get(NO_PASSTHROUGH_VARIABLE) == "1":
        return SWITCHED_OFF
    if not is_built():
        return NOT_BUILT
    if not has_capability(CAP_SYS_ADMIN):
        return NO_PRIVILEGE
    return "" if _is_kernel_new(platform.release()) else OLD_KERNEL


def is_built() -> bool:
    """Whether the extension is there by which pyfuse3 can answer an OPEN so."""
    return find_spec(EXTENSION) is not None


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect (proc(5), ``CapEff``)."""
    found = re.search(r"^CapEff:\t([0-9a-f]+)$", Path("/proc/self/status").read_text("utf-8", "replace"), re.M)
    return found is not None and bool(int(found[1], 16) >> number & 1)


def _is_kernel_new(release: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= PASSTHROUGH_KERNEL
