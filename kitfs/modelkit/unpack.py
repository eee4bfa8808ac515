"""A ModelKit's files in a directory, as ``kit unpack`` writes them.

A parent's model first, then the Kitfile, then the layers in the manifest's order; ``filters`` says which of them.
What a mount with ``-o modes=tar`` shows is what lies there afterwards, but for ``model`` links and ``.kitfs``. Files
have the layers' modes, less the umask (setuid and setgid stay only as far as the kernel lets the caller write such a
file, as with kit), the caller as owner and the present as their time. Where files go and how they are kept inside of
the target is ``unpack_target``'s; how bytes are read and verified, ``kitfs.layer.deliver``'s. Nothing is written to
the store, and nothing fsynced, as with kit and tar: when ``unpack`` returns the files are whole, and survive the end of
the process but not a power cut; the store still has them then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.layer.crew import Crew, run_apart
from kitfs.layer.deliver import Deliverer
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.modelkit.filters import EVERYTHING, Filter
from kitfs.modelkit.nodes import Tree, TreeConflict
from kitfs.modelkit.resolve import KitLayer, resolve
from kitfs.modelkit.selection import Selected, select
from kitfs.modelkit.tree import KITFILE, add_layer
from kitfs.modelkit.unpack_errors import PathExists, UnpackFailed
from kitfs.modelkit.unpack_file import NewFile
from kitfs.modelkit.unpack_target import Target
from kitfs.oci.kitfile_regenerate import encode_kitfile_yaml
from kitfs.oci.mediatype import LayerKind
from kitfs.progress import NoProgress, Progress, Step
from kitfs.store.records import KIND_DIRECTORY, TocMember

if TYPE_CHECKING:
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store

KITFILE_MODE = 0o644

_TOLD_SIZE = 4 << 20

Say = Callable[[str], None]


class KitfileDiffers(UnpackFailed):
    """Another Kitfile is there."""

    hint = PathExists.hint

    def __init__(self) -> None:
        super().__init__(KITFILE, "Kitfile exists and does not match model's Kitfile")


@dataclass(frozen=True, slots=True)
class UnpackOptions:
    """How to unpack.

    Attributes:
        filters: What of the ModelKit; none for all.
        overwrite: Replace files that are there.
        ignore_existing: Leave files that are there as they are; goes before ``overwrite``.
    """

    filters: tuple[Filter, ...] = EVERYTHING
    overwrite: bool = False
    ignore_existing: bool = False


@dataclass(slots=True)
class UnpackReport:
    """What was written.

    Attributes:
        manifests: The ModelKit's digest, and its parents'.
        files: Files written.
        skipped: Files that were there.
        size: Bytes written.
    """

    manifests: tuple[Digest, ...]
    files: int = 0
    skipped: int = 0
    size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, size: int | None) -> None:
        """A file was begun; None for one that is passed over."""
        with self._lock:
            if size is None:
                self.skipped += 1
            else:
                self.files += 1
                self.size += size


def unpack(
    store: Store,
    reference: Reference,
    directory: Path,
    options: UnpackOptions = UnpackOptions(),
    *,
    progress: Progress | None = None,
    say: Say = lambda text: None,
    warn: Say = lambda text: None,
) -> UnpackReport:
    """Unpack a ModelKit.

    In place when this returns: every file that is wanted, whole and verified. Whatever it raises, files that lie under
    their names are whole and verified; the others are not there, and nothing outside of the directory was written.

    Args:
        store: Where it is.
        reference: Which.
        directory: Where it goes; made when it is not there.
        options: What and how.
        progress: Told of each layer.
        say: Told in kit's words what is being done.
        warn: Told of layers that are passed over.

    Raises:
        ModelKitNotFound: when it or a parent is not in the store.
        UnpackFailed: when something in the directory is in the way, or it can not be written.
        LayerCorrupt: when the store's bytes are not those that were verified.
        KitfsError, OSError: when the store or the disk fails.
    """
    resolved = resolve(store, reference)
    report = UnpackReport(resolved.digests)
    with store.lease("unpack") as lease:
        for digest in resolved.digests:
            lease.hold(digest)
        overwrite, ignore_existing = options.overwrite, options.ignore_existing
        with Target(directory, overwrite=overwrite, ignore_existing=ignore_existing) as target:
            run = _Run(store, target, report, progress or NoProgress(), say, warn)
            selected = select(resolved, options.filters)
            run_apart("kitfs-unpack", lambda crew: run.unpack(crew, selected))
    return report


class _Run:
    """One unpacking."""

    def __init__(
        self, store: Store, target: Target, report: UnpackReport, progress: Progress, say: Say, warn: Say
    ) -> None:
        self._store = store
        self._progress = progress
        self._target = target
        self._report = report
        self._say = say
        self._warn = warn

    def unpack(self, crew: Crew, selected: Sequence[Selected]) -> None:
        """Unpack in order; all is in place when this returns."""
        is_in_order = self._is_overlapping([layer for one in selected for layer in one.layers])
        deliverer = Deliverer(self._store, crew)
        for one in selected:
            if one.kit is not selected[-1].kit:
                self._say(f"Unpacking referenced modelkit {one.name}")
            for descriptor in one.kit.unknown_layers:
                self._warn(f"layer {descriptor.digest} has the unknown type {descriptor.media_type}; skipping it")
            if one.has_kitfile and one.kit.kitfile is not None:
                self._write_kitfile(encode_kitfile_yaml(one.kit.kitfile))
            for layer in one.layers:
                self._say(_describe(layer))
                self._deliver(deliverer, layer)
                if is_in_order:
                    crew.drain()
        crew.drain()
        self._target.finish()

    def _is_overlapping(self, layers: Sequence[KitLayer]) -> bool:
        """Whether layers have paths in common, so that their order matters."""
        tree = Tree(0)
        try:
            for layer in layers if len(layers) > 1 else ():
                add_layer(tree, layer, self._store.open_outline(layer.digest))
        except TreeConflict:
            return True
        return False

    def _write_kitfile(self, raw: bytes) -> None:
        existing = None if self._target.overwrite else self._target.read_existing(KITFILE, len(raw) + 1)
        if existing == raw:
            self._say(f"Found existing Kitfile at {self._target.path / 'Kitfile'}")
            return
        if existing is not None:
            raise KitfileDiffers
        self._say(f"Unpacking config to {self._target.path / 'Kitfile'}")
        file = self._target.create(KITFILE, KITFILE_MODE)
        if file is not None:
            file.write(raw, 0)
            file.place()
            self._report.note(len(raw))

    def _deliver(self, deliverer: Deliverer, layer: KitLayer) -> None:
        with LayerReader(self._store, layer.digest, materialise=Materialise.NEVER) as reader:
            size = 0
            for member in reader.toc:
                if member.kind == KIND_DIRECTORY:
                    self._target.make_directory(_path(layer, member), member.mode)
                else:
                    size += member.size

            def create(_index: int, member: TocMember) -> NewFile | None:
                mode = member.mode if layer.raw_path is None else layer.raw_mode
                file = self._target.create(_path(layer, member), mode)
                self._report.note(None if file is None else member.size)
                return file

            step = self._progress.begin(f"{layer.type.kind} {layer.artifacts[0].path}", size)
            deliverer.deliver(reader, create, _Tally(step, size).advance)


class _Tally:
    """The bytes of a layer that are done, told in large portions: each takes a lock and a moment to draw."""

    def __init__(self, step: Step, size: int) -> None:
        self._step = step
        self._left = size
        self._untold = 0
        self._lock = threading.Lock()
        if not size:
            step.finish()

    def advance(self, size: int) -> None:
        """So many bytes more are done; ends the step with the last."""
        with self._lock:
            self._left -= size
            self._untold += size
            if self._untold < _TOLD_SIZE and self._left:
                return
            told, self._untold = self._untold, 0
            is_last = not self._left
        if told:
            self._step.advance(told)
            if is_last:
                self._step.finish()


def _path(layer: KitLayer, member: TocMember) -> bytes:
    if layer.raw_path is not None:
        return layer.raw_path
    return layer.prefix + b"/" + member.path if layer.prefix else member.path


def _describe(layer: KitLayer) -> str:
    """What kit says when it comes to a layer."""
    artifact = layer.artifacts[0]
    match layer.type.kind:
        case LayerKind.MODEL:
            return f"Unpacking model {artifact.name} to {artifact.path}"
        case LayerKind.MODELPART:
            return f"Unpacking model part {artifact.name} to {artifact.path}"
        case LayerKind.DATASET:
            return f"Unpacking dataset {artifact.name} to {artifact.path}"
        case LayerKind.MCPB:
            return f"Unpacking MCP server {artifact.name} to {artifact.path}"
        case LayerKind.DOCS:
            return f"Unpacking docs to {artifact.path}"
        case LayerKind.CODE:
            return f"Unpacking {artifact.subtype or 'code'} to {artifact.path}"
