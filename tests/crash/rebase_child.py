"""Makes a store with two ModelKits and a staging directory over the first, or moves that onto the second."""

import os
import sys
from pathlib import Path

from kitfs.modelkit.pack import pack
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging, open_staging, rebase_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store


def prepare(store: Store, folder: Path) -> None:
    """Two ModelKits, and a staging directory in which a file was written."""
    for name in ("one", "two"):
        context = folder / name
        context.mkdir(parents=True)
        (context / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w}\n")
        (context / "w").write_text(name)
        pack(store, context, None, [parse_reference(f"{name}:1")], created_s=0)
    resolved = resolve(store, parse_reference("one:1"))
    staging = create_staging(store, folder / "work", resolved, overlay="overlay", uid=os.geteuid(), gid=os.getegid())
    (staging.upper / "folder").mkdir()
    (staging.upper / "folder/changed").touch()


def main() -> None:
    """``prepare HOME FOLDER`` or ``work HOME FOLDER``."""
    action, home, folder = sys.argv[1:]
    with Store.open(Path(home)) as store:
        if action == "prepare":
            prepare(store, Path(folder))
        else:
            rebase_staging(store, open_staging(Path(folder, "work")), resolve(store, parse_reference("two:1")))


if __name__ == "__main__":
    main()
