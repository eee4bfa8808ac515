"""Loads the extension by which pyfuse3 can answer an OPEN with a backing file (``reply_open.c``), where there is one.

Called by ``kitfs.fuse`` when it is imported, so before pyfuse3: the extension's symbols must be global before those of
libfuse are looked up. Without it everything works, and no file is passed through.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from types import ModuleType

log = logging.getLogger(__name__)

NO_PASSTHROUGH_VARIABLE = "KITFS_NO_PASSTHROUGH"
"""Environment variable: ``1`` leaves the extension out, as where it was not built."""

EXTENSION = "kitfs.fuse._reply_open"


def load() -> ModuleType | None:
    """The extension; None where there is none, or where pyfuse3 was there first."""
    known = sys.modules.get(EXTENSION)
    if known is not None or "pyfuse3" in sys.modules or os.environ.get(NO_PASSTHROUGH_VARIABLE) == "1":
        return known
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        return importlib.import_module(EXTENSION)
    except ImportError as error:
        log.debug("files are not passed through: %s", error)
        return None
    finally:
        sys.setdlopenflags(flags)
