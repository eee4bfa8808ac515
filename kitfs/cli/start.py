"""The first thing that ``kitfs`` runs: has the collector wait while hundreds of modules are imported, then goes on.

Imports only make objects that stay, and the collector's 34 passes over them were 10 % of a ``kitfs mount``. Nothing
but this may be in here: whatever is imported before ``main`` runs pays for it.
"""

import gc
from typing import NoReturn

THRESHOLD = 50_000
"""Objects made, less those gone, before the collector looks: start-up makes fewer, a long command reaches it soon."""


def main() -> NoReturn:
    """Entry point of the ``kitfs`` command."""
    gc.set_threshold(THRESHOLD, 10, 10)
    from kitfs.cli.main import main as run_command

    run_command()
