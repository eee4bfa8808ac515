"""Which of a store's blobs are ModelKits, and what those say of the others; told by the files alone.

Used by ``rebuild``. Small blobs that begin as JSON objects do are read and hashed; those that parse as the manifest of
a ModelKit are one: named by a tag, a session or a staging directory, or else with all the blobs they name. Changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kitfs.digest import Digest
from kitfs.errors import MalformedError
from kitfs.oci.manifest import MANIFEST_SIZE_MAX, Manifest, find_index_digest, parse_manifest
from kitfs.oci.mediatype import OCI_MANIFEST, LayerType, parse_layer_type
from kitfs.progress import Progress
from kitfs.store import stored
from kitfs.store.layout import Layout
from kitfs.store.rebuild_facts import LoggedTags
from kitfs.store.sessions import SessionRecord
from kitfs.store.staging import Registration
from kitfs.store.stored import Reading, StoredFile

_HEAD_SIZE = 256


@dataclass(slots=True)
class Inventory:
    """What is there.

    Attributes:
        files: All blobs.
        readings: What hashing those told that can be manifests.
        manifests: ModelKits, those that somebody needs first.
        kinds: The kinds of layer that a blob is said to be; each is indexed differently.
        media_types: What a blob is called, in order of appearance.
        origins: Where a blob came from, where a tag tells.
        indexes: What layers name as their image indexes.
    """

    files: dict[Digest, StoredFile]
    readings: dict[Digest, Reading] = field(default_factory=dict)
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    kinds: dict[Digest, list[LayerType]] = field(default_factory=dict)
    media_types: dict[Digest, dict[str, None]] = field(default_factory=dict)
    origins: dict[Digest, str] = field(default_factory=dict)
    indexes: set[Digest] = field(default_factory=set)

    def can_be_made(self, digest: Digest) -> bool:
        """Whether a blob is derived: an image index and nothing else."""
        others = (self.manifests.keys(), self.kinds.keys(), {item.config.digest for item in self.manifests.values()})
        return digest in self.indexes and not any(digest in other for other in others)


def take_inventory(
    layout: Layout, logged: LoggedTags, needed_by: Iterable[SessionRecord | Registration], progress: Progress
) -> Inventory:
    """Look at all blobs, and read the small ones.

    Args:
        layout: The store.
        logged: Its tags.
        needed_by: Sessions and staging directories.
        progress: Is told of what is read.

    Raises:
        StoreWriteFailed: when a folder can not be read.
    """
    inventory = Inventory({file.digest: file for file in stored.iter_blobs(layout)})
    parsed = _read_small(layout, inventory, progress)
    wanted = dict.fromkeys(record.manifest for record in logged.tags.values())
    wanted |= dict.fromkeys(Digest.parse(text) for one in needed_by for text in one.manifests)
    for digest in (*logged.origins, *wanted, *parsed):  # blobs of several are the first one's
        manifest = parsed.pop(digest, None)
        if manifest is None:
            continue
        needed = (manifest.config, *manifest.layers)
        if digest in wanted or all(descriptor.digest in inventory.files for descriptor in needed):
            _add_manifest(inventory, manifest, logged.origins.get(digest, "here"))
    return inventory


def _read_small(layout: Layout, inventory: Inventory, progress: Progress) -> dict[Digest, Manifest]:
    """Hash all blobs that can be manifests; those that are."""
    small = [
        file
        for file in inventory.files.values()
        if file.form != "split" and file.size <= MANIFEST_SIZE_MAX and _is_object(file)
    ]
    parsed: dict[Digest, Manifest] = {}
    step = progress.begin(f"{len(small)} manifests and configs", sum(file.size for file in small))
    for file in small:
        raw = bytearray()
        reading = inventory.readings[file.digest] = stored.read_whole(layout, file, raw.extend)
        step.advance(file.size)
        if reading.is_right:
            try:
                parsed[file.digest] = parse_manifest(bytes(raw))
            except MalformedError:
                continue
    step.finish()
    return parsed


def _is_object(file: StoredFile) -> bool:
    """Whether a blob begins as a JSON object does."""
    try:
        return stored.read_head(file, _HEAD_SIZE).lstrip()[:1] == b"{"
    except OSError:
        return False


def _add_manifest(inventory: Inventory, manifest: Manifest, origin: str) -> None:
    inventory.manifests[manifest.digest] = manifest
    names = [(manifest.digest, OCI_MANIFEST), (manifest.config.digest, manifest.config.media_type)]
    names += [(layer.digest, layer.media_type) for layer in manifest.layers]
    for digest, media_type in names:
        inventory.media_types.setdefault(digest, {})[media_type] = None
        inventory.origins.setdefault(digest, origin)
    for layer in manifest.layers:
        index = find_index_digest(layer)
        if index is not None:
            inventory.indexes.add(index)
        kind = parse_layer_type(layer.media_type)
        if kind is not None:
            kinds = inventory.kinds.setdefault(layer.digest, [])
            if all((known.format, known.compression) != (kind.format, kind.compression) for known in kinds):
                kinds.append(kind)
