"""What two ModelKits have in common and in what they differ: manifests as kit compares them, then members.

Used by ``kitfs diff``. Reads manifests and tables of contents, never a layer's bytes, and changes nothing; parents are
not looked at, as with kit. Members are compared by the path at which they are unpacked, their digest and their
permission bits: the same files in other layers, or compressed in another way, are no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from kitfs.store.records import KIND_FILE

if TYPE_CHECKING:
    from kitfs.modelkit.resolve import Kit, KitLayer
    from kitfs.oci.manifest import Descriptor, Manifest
    from kitfs.store.reads import StoreReads

Status = Literal["A", "M", "D"]
"""Added, modified or deleted, as git's ``--name-status``."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two manifests side by side (kitops ``pkg/cmd/diff/diff.go``, ``DiffResult``).

    Attributes:
        same_config: Whether their configs have one digest.
        annotations_match: Whether their own annotations are equal; those of layers do not count.
        shared: Layers of the second that the first has too, by media type, else in manifest order.
        unique_a: Layers of the first alone, likewise.
        unique_b: Layers of the second alone, likewise.
    """

    same_config: bool
    annotations_match: bool
    shared: tuple[Descriptor, ...]
    unique_a: tuple[Descriptor, ...]
    unique_b: tuple[Descriptor, ...]


class MemberChange(NamedTuple):
    """One file that differs.

    Attributes:
        status: What happened to it between the first ModelKit and the second.
        path: Where it is unpacked.
        size: Bytes it has in the second; of a deleted one, had in the first.
    """

    status: Status
    path: bytes
    size: int


class _File(NamedTuple):
    digest: bytes | None
    size: int
    mode: int


def compare_manifests(a: Manifest, b: Manifest) -> Comparison:
    """Compare configs, annotations and layers by digest."""
    digests_a = {layer.digest for layer in a.layers}
    digests_b = {layer.digest for layer in b.layers}
    return Comparison(
        same_config=a.config.digest == b.config.digest,
        annotations_match=dict(a.annotations) == dict(b.annotations),
        shared=_by_type(layer for layer in b.layers if layer.digest in digests_a),
        unique_a=_by_type(layer for layer in a.layers if layer.digest not in digests_b),
        unique_b=_by_type(layer for layer in b.layers if layer.digest not in digests_a),
    )


def _by_type(layers: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    return tuple(sorted(layers, key=lambda layer: layer.media_type))


def compare_members(store: StoreReads, a: Kit, b: Kit) -> list[MemberChange]:
    """The files that differ, by path.

    Raises:
        LayerNotIndexed, RecordCorrupt, IndexFailed, IndexCorrupt: when a table of contents can not be read.
    """
    places_b = {_place(layer) for layer in b.layers}
    common = {place for layer in a.layers if (place := _place(layer)) in places_b}
    old = dict(_iter_files(store, [layer for layer in a.layers if _place(layer) not in common]))
    changes: dict[bytes, MemberChange] = {}
    met: set[bytes] = set()  # a path that the second has twice counts once
    for path, file in _iter_files(store, [layer for layer in b.layers if _place(layer) not in common]):
        if path in met:
            continue
        met.add(path)
        before = old.pop(path, None)
        if before != file:
            changes[path] = MemberChange("A" if before is None else "M", path, file.size)
    changes |= {path: MemberChange("D", path, file.size) for path, file in old.items()}
    return [changes[path] for path in sorted(changes)]


def _place(layer: KitLayer) -> tuple[object, ...]:
    """Two layers with equal places give the same files."""
    return layer.digest, layer.prefix, layer.raw_path, layer.raw_mode


def _iter_files(store: StoreReads, layers: Sequence[KitLayer]) -> Iterator[tuple[bytes, _File]]:
    for layer in layers:
        prefix = layer.prefix + b"/" if layer.prefix else b""
        for member in store.open_toc(layer.digest):
            if member.kind == KIND_FILE and layer.raw_path is not None:
                yield layer.raw_path, _File(member.digest, member.size, layer.raw_mode)
            elif member.kind == KIND_FILE:
                yield prefix + member.path, _File(member.digest, member.size, member.mode)
