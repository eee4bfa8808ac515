"""Files of a staging directory that a child does not hold: they would be lost when it is emptied.

Used by derive, before a commit after which the staging directory moves onto the child. Reads names only.
"""

from __future__ import annotations

from kitfs.errors import KitfsError
from kitfs.modelkit.merged_source import MergedSource
from kitfs.modelkit.untracked import SHOWN_MAX, show_path
from kitfs.oci.kitfile import KITFILE_NAMES, Kitfile, clean_path, iter_artifacts


class FilesLeftBehind(KitfsError):
    """Files that are in a staging directory, and not in what is made of it.

    Attributes:
        paths: All of them, relative to the root.
    """

    hint = "move them elsewhere, or commit without --rebase"

    def __init__(self, paths: list[str]) -> None:
        shown = [f"  {show_path(path)}" for path in paths[:SHOWN_MAX]]
        more = [f"  and {len(paths) - SHOWN_MAX} more"] if len(paths) > SHOWN_MAX else []
        super().__init__("\n".join(["--rebase would remove what the ModelKit does not hold:", *shown, *more]))
        self.paths = paths


def refuse_left_behind(source: MergedSource, kitfile: Kitfile) -> None:
    """See that a child holds all that was written.

    Raises:
        FilesLeftBehind: when it does not: files that ``.kitignore`` names, itself, untracked files, links, devices.
    """
    kept = {
        entry.path for artifact in iter_artifacts(kitfile) for entry in source.iter_entries(clean_path(artifact.path))
    }
    own = next((name for name in KITFILE_NAMES if source.has_file(name)), None)
    written = [*source.iter_written(), *(path for path, _ in source.list_others())]
    left = [path for path in written if path not in kept and path != own]
    if left:
        raise FilesLeftBehind(sorted(left))
