"""Export into an OCI image layout, a new folder or one that is added to.

https://github.com/opencontainers/image-spec, image-layout.md, version 1.0.0. What was asked for is named by its tag
alone, as ``skopeo copy oci:DIR:TAG`` and ``oras --from-oci-layout`` want it; its parents, whose tags may be equal, by
their full references. ``io.containerd.image.name`` says the full reference of both, and import goes by it.

``index.json`` is replaced last, in one step, when all blobs are there and on disk: an export that was killed leaves
blobs that nothing names, and the next one goes on from there. Exports to one folder take turns; other programs that
change it at the same time know nothing of that.
"""

from __future__ import annotations

from pathlib import Path

from kitfs.errors import UsageError
from kitfs.oci import go_json
from kitfs.oci.manifest import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor
from kitfs.progress import Progress
from kitfs.store.store import Store
from kitfs.transfer import export_files
from kitfs.transfer.export_index import LayoutIndex, NameTaken
from kitfs.transfer.export_plan import ExportedKit, ExportPlan
from kitfs.transfer.kit_storage import holds_repositories
from kitfs.transfer.oci_layout import LAYOUT_VERSION, MARKER_SIZE_MAX, check_layout_version
from kitfs.transfer.source import placed, read_plain

MARKER = go_json.encode({"imageLayoutVersion": LAYOUT_VERSION})
"""The file ``oci-layout``."""

FILE_MODE = 0o644
TAKEN_HINT = "--force gives it the name, --full-name names it with its repository, another folder has room for both"


class DestinationNotUsable(UsageError):
    """A place that an export can not go to."""

    def __init__(self, path: Path, reason: str, hint: str = "") -> None:
        super().__init__(f"can not export to {path}: {reason}")
        self.path = path
        self.reason = reason
        self.hint = hint


def name_in_layout(kit: ExportedKit, *, full_name: bool) -> str | None:
    """The ``ref.name`` of a ModelKit: its tag, or for parents and where it is asked for the full reference."""
    return kit.name if full_name or kit.is_parent else kit.reference.tag


def add_kits(index: LayoutIndex, plan: ExportPlan, place: str, *, full_name: bool, force: bool) -> None:
    """Name all ModelKits of a plan in an index.

    Raises:
        NameTaken: when a name is another ModelKit's, unless ``force`` is set.
    """
    for kit in plan.kits:
        name = name_in_layout(kit, full_name=full_name)
        if name is None or kit.name is None:
            index.add(kit.descriptor)
            continue
        others = [str(digest) for digest in index.find_name(name, kit.name) if digest != kit.manifest.digest]
        if others and not force:
            raise NameTaken(name, place, others[0], TAKEN_HINT)
        plain = kit.descriptor
        annotations = {ANNOTATION_IMAGE_NAME: kit.name, ANNOTATION_REF_NAME: name}
        index.set_name(name, Descriptor(plain.media_type, plain.digest, plain.size, annotations))


def export_layout(store: Store, plan: ExportPlan, folder: Path, *, progress: Progress, full_name: bool = False,
                  force: bool = False) -> None:  # fmt: skip
    """Write a plan's ModelKits into a layout.

    On disk when it returns: all of it.

    Args:
        store: Where from.
        plan: What; its lease is held.
        folder: Where to: absent, empty, a layout, or what a killed export has left.
        progress: Is told of each blob.
        full_name: Name everything by its full reference.
        force: Take names away from other ModelKits, which stay without.

    Raises:
        DestinationNotUsable: when something else is there.
        NameTaken: when a name is another ModelKit's.
        SourceMalformed: when the layout that is there breaks its format.
        BlobNotFound, BlobCorrupt: when the store does not have a blob, or other bytes under its name.
        StoreWriteFailed: when writing failed.
    """
    _check_folder(store, folder)
    add_kits(_read_index(folder), plan, str(folder), full_name=full_name, force=force)
    export_files.make_folder(folder)
    export_files.sweep(folder)
    export_files.write_blobs(store, plan.blobs.values(), folder, mode=FILE_MODE, progress=progress)
    with export_files.locked(folder):
        index = _read_index(folder)
        add_kits(index, plan, str(folder), full_name=full_name, force=force)
        if not (folder / "oci-layout").exists():
            export_files.write_small(folder / "oci-layout", MARKER, mode=FILE_MODE)
        export_files.write_small(folder / "index.json", index.encode(), mode=FILE_MODE)


def _read_index(folder: Path) -> LayoutIndex:
    try:
        raw = read_plain(folder, "index.json")
    except (FileNotFoundError, NotADirectoryError):
        return LayoutIndex(None)
    return placed(LayoutIndex, raw, folder / "index.json")


def _check_folder(store: Store, folder: Path) -> None:
    """See that a folder may become or is a layout.

    Raises:
        DestinationNotUsable, SourceMalformed: when it is neither.
    """
    if folder.resolve().is_relative_to(store.home.resolve()):
        raise DestinationNotUsable(folder, "it lies in the store")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DestinationNotUsable(folder, "it is not a folder", "an archive's name ends with .tar")
    if (folder / "oci-layout").exists():
        check_layout_version(read_plain(folder, "oci-layout", limit=MARKER_SIZE_MAX), folder / "oci-layout")
        if holds_repositories(folder):
            raise DestinationNotUsable(folder, "it is kit's storage", "kitfs export --kit writes there")
        return
    foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
    if foreign:
        raise DestinationNotUsable(folder, f"it is not empty and no OCI layout: it holds {foreign[0]!r}")


def _is_ours(name: str) -> bool:
    return name == "blobs" or name.startswith(export_files.SCRATCH)
