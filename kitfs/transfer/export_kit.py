"""Export into kit's local storage, the shape of kit 0.3 and newer (see ``kit_storage``), so that kit's verbs find it.

kit rewrites its files in place, takes no lock, and holds what it read in memory until it writes. Here each file is
replaced in one step, in the order in which kit needs them: blobs, ``index.json`` (what kit's ``remove`` frees blobs
by), the repository's index, its tags. Entries that are there stay. Exports take turns; a kit that writes to the same
repository in the same moment may still undo the new entries, as two kits do to each other: then export again.

Layers are exported in whatever form they have: tar and gzip are read by kit 0.5 and newer, raw and zstd by none that
was tried (1.0.1, 1.4.0, 1.7.0, the sources of August 2025).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from kitfs.errors import UsageError
from kitfs.oci import go_json
from kitfs.oci.manifest import ANNOTATION_SUBTYPE, Descriptor
from kitfs.oci.mediatype import parse_layer_type
from kitfs.oci.strict_json import decode
from kitfs.progress import Progress
from kitfs.store.store import Store
from kitfs.transfer import export_files
from kitfs.transfer.export_index import LayoutIndex, NameTaken, encode_descriptor
from kitfs.transfer.export_layout import FILE_MODE, MARKER, DestinationNotUsable
from kitfs.transfer.export_plan import ExportPlan
from kitfs.transfer.kit_storage import STORAGE, iter_layout_folders, parse_tags
from kitfs.transfer.oci_layout import MARKER_SIZE_MAX, check_layout_version
from kitfs.transfer.source import placed, read_plain

BLOB_MODE = 0o600
"""What kit gives the layers it writes and all blobs it pulls."""


class KitFailsAt(UsageError):
    """A ModelKit that breaks kit's verbs for all others beside it."""

    hint = "--force exports it all the same; an OCI layout, exported without --kit, can be copied to a registry"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is a ModelPack: `kit list` of kit before 1.10 panics while its storage holds one")
        self.name = name


def export_kit_storage(store: Store, plan: ExportPlan, kitops_home: Path, *, progress: Progress,
                       force: bool = False) -> None:  # fmt: skip
    """Write a plan's ModelKits into kit's storage, under the names that they have here.

    On disk when it returns: all of it.

    Args:
        store: Where from.
        plan: What; its lease is held.
        kitops_home: kit's home; made when it is absent.
        progress: Is told of each blob.
        force: Move tags that kit has for other ModelKits, and export ModelPacks.

    Raises:
        KitFailsAt: when a ModelPack is among them, unless ``force`` is set.
        DestinationNotUsable: when something else is there.
        NameTaken: when kit has a tag for another ModelKit.
        SourceMalformed: when a file of the storage breaks its format.
        BlobNotFound, BlobCorrupt: when the store does not have a blob, or other bytes under its name.
        StoreWriteFailed: when writing failed.
    """
    for kit in plan.kits:
        if kit.manifest.is_modelpack and not force:
            raise KitFailsAt(kit.reference.display)
    storage = kitops_home / STORAGE
    _check(store, kitops_home, storage)
    repositories = _by_repository(plan)
    for repository, named in repositories.items():
        _merge_tags(storage, repository, named, force=force)
    export_files.make_folder(storage)
    export_files.sweep(storage)
    export_files.write_blobs(store, plan.blobs.values(), storage, mode=BLOB_MODE, progress=progress)
    with export_files.locked(storage):
        if not (storage / "oci-layout").exists():
            export_files.write_small(storage / "oci-layout", MARKER, mode=FILE_MODE)
        descriptors = [kit.descriptor for kit in plan.kits]
        _write(storage / "index.json", _merge_index(storage, "index.json", descriptors, media_type=True))
        for repository, named in repositories.items():
            _write_repository(storage, repository, named, force=force)


def _check(store: Store, kitops_home: Path, storage: Path) -> None:
    if kitops_home.resolve().is_relative_to(store.home.resolve()):
        raise DestinationNotUsable(kitops_home, "it lies in the store")
    if (kitops_home / "oci-layout").exists():
        raise DestinationNotUsable(kitops_home, "it is a layout itself", "kit's home is the folder above its storage")
    for folder in (kitops_home, storage):
        if folder.exists() and not folder.is_dir():
            raise DestinationNotUsable(folder, "it is not a folder")
    if storage.exists() and next(iter_layout_folders(storage), None) is not None:
        raise DestinationNotUsable(storage, "kit 0.1 or 0.2 wrote it", "`kit list` of a newer kit converts it")
    if (storage / "oci-layout").exists():
        check_layout_version(read_plain(storage, "oci-layout", limit=MARKER_SIZE_MAX), storage / "oci-layout")


def iter_unread(plan: ExportPlan) -> Iterator[tuple[str, str]]:
    """ModelKits with layers that kit up to 1.7 does not unpack, by name, and the form of these layers."""
    for kit in plan.kits:
        types = [parse_layer_type(layer.media_type) for layer in kit.manifest.layers]
        forms = {form for kind in types if kind is not None for form in (str(kind.format), str(kind.compression))}
        if any(layer.annotations.get(ANNOTATION_SUBTYPE) == "prompt" for layer in kit.manifest.layers):
            forms.add("prompt")  # to kit a code layer without an entry: unpack ends in a panic
        for form in sorted(forms & {"raw", "zstd", "prompt"}):
            yield kit.reference.display, form


Named = list[tuple[str | None, Descriptor]]


def _by_repository(plan: ExportPlan) -> dict[str, Named]:
    found: dict[str, Named] = {}
    for kit in plan.kits:
        found.setdefault(kit.reference.repository, []).append((kit.reference.tag, kit.descriptor))
    return found


def _write_repository(storage: Path, repository: str, named: Named, *, force: bool) -> None:
    name = _file_name(repository)
    tags = _merge_tags(storage, repository, named, force=force)
    descriptors = [descriptor for _, descriptor in named]
    _write(storage / f"{name}-index.json", _merge_index(storage, f"{name}-index.json", descriptors, media_type=False))
    if tags:
        _write(storage / f"{name}-tags.json", go_json.encode(dict(sorted(tags.items()))))


def _file_name(repository: str) -> str:
    return base64.urlsafe_b64encode(repository.encode()).decode()


def _merge_tags(storage: Path, repository: str, named: Named, *, force: bool) -> dict[str, object]:
    """The content of a repository's tags file with the new tags.

    Raises:
        NameTaken: when kit has a tag for another ModelKit, unless ``force`` is set.
        SourceMalformed: when the file breaks its format.
    """
    path = storage / f"{_file_name(repository)}-tags.json"
    raw = _read(storage, path.name) or b"{}"
    known = placed(parse_tags, raw, path)
    tags = cast("dict[str, object]", decode(raw))
    for tag, descriptor in named:
        if tag is None:
            continue
        other = known.get(tag)
        if other is not None and other.digest != descriptor.digest and not force:
            name = f"{repository.removeprefix('localhost/')}:{tag}"
            raise NameTaken(
                name, f"kit's storage {storage}", str(other.digest), "--force moves the tag in kit's storage"
            )
        tags[tag] = encode_descriptor(descriptor)
    return tags


def _merge_index(storage: Path, name: str, descriptors: Iterable[Descriptor], *, media_type: bool) -> bytes:
    raw = _read(storage, name)
    make = partial(LayoutIndex, media_type=media_type)
    index = make(None) if raw is None else placed(make, raw, storage / name)
    for descriptor in descriptors:
        index.add(descriptor)
    return index.encode()


def _read(storage: Path, name: str) -> bytes | None:
    try:
        return read_plain(storage, name)
    except FileNotFoundError:
        return None


def _write(path: Path, raw: bytes) -> None:
    export_files.write_small(path, raw, mode=FILE_MODE)
