"""Makes a child of a ModelKit: what changed is written anew, what did not keeps the parent's descriptor verbatim.

The code behind ``kitfs commit``. The parent never changes. Layers, config, manifest and tag become visible together, or
not at all; a layer without a change is neither read nor hashed nor copied. What the tree holds and no entry of its
Kitfile claims stops it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import KitfsError, UsageError
from kitfs.layer.compress import PackCompression
from kitfs.modelkit.derive_manifest import choose_form, is_legacy, without_digests
from kitfs.modelkit.derive_plan import DerivedLayer, Form, LayerState, plan_layers
from kitfs.modelkit.derive_source import DeriveSource, open_folder, open_staged
from kitfs.modelkit.left_behind import refuse_left_behind
from kitfs.modelkit.merged_source import MergedSource
from kitfs.modelkit.pack import check_request
from kitfs.modelkit.pack_layers import PackedLayer, pack_layers
from kitfs.modelkit.pack_options import PackOptions, check_options
from kitfs.modelkit.parentage import Parents, find_parents
from kitfs.modelkit.publish import Publication
from kitfs.modelkit.resolve import Kit, ResolvedTree, reopen
from kitfs.modelkit.staging import Staging, StagingUnusable, find_staging
from kitfs.modelkit.untracked import find_untracked
from kitfs.modelkit.walk import FileChanged, FileOpenForWriting
from kitfs.oci.kitfile import Kitfile, iter_warnings
from kitfs.oci.manifest import Descriptor
from kitfs.oci.mediatype import Compression, Family
from kitfs.oci.reference import Reference
from kitfs.progress import NoProgress, Progress
from kitfs.store.errors import TagTaken
from kitfs.store.lease import Lease
from kitfs.store.store import Store

MESSAGE_SIZE_MAX = 64 << 10
"""Bytes of a message; a manifest has 4 MiB."""

_TRIES = 2
_CHANGED_HINT = "commit again when nothing writes to it"


class TreeChanged(KitfsError):
    """Files came or went while a child was made."""

    hint = "commit again when nothing writes to the staging directory"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} changed while it was being committed")
        self.path = path


class MessageUnusable(UsageError):
    """A message that a manifest can not hold."""


class StagingNeeded(UsageError):
    """A plain folder where a staging directory is needed."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is no staging directory, and only one can be moved onto what is made of it")


class ParentGiven(UsageError):
    """A parent was named for a staging directory, which has one."""

    def __init__(self, path: Path, reference: str) -> None:
        super().__init__(f"{path} is a staging directory over {reference}, so it has a parent already")


@dataclass(frozen=True, slots=True)
class DeriveOptions:
    """How a child is made.

    Attributes:
        message: What its maker says of it.
        compression: Of layers that are written; None for the parent's.
        ignores_untracked: Leave out what no entry claims.
        moves_tag: Whether the tag may be there already.
        created_s: Creation time to record, seconds since the epoch; None for now.
        dry_run: Only look what would be done.
        rebases: Refuse what would be lost when the staging directory is emptied afterwards; the caller does that.
    """

    message: str = ""
    compression: PackCompression | None = None
    ignores_untracked: bool = False
    moves_tag: bool = False
    created_s: int | None = None
    dry_run: bool = False
    rebases: bool = False


@dataclass(frozen=True, slots=True)
class Derived:
    """What became of a commit.

    Attributes:
        manifest: The child's ModelKitID; the parent's when nothing changed; None after a dry run.
        parent: The parent; None for a folder without one.
        layers: What became of each layer.
        is_new: Whether there was anything to commit.
        staging: The staging directory that it was made of.
        is_as_read: Whether that still holds what was committed; it is looked through again.
    """

    manifest: Digest | None
    parent: ResolvedTree | None
    layers: Sequence[DerivedLayer]
    is_new: bool
    staging: Staging | None = None
    is_as_read: Callable[[], bool] = lambda: True


def derive(
    store: Store,
    path: Path,
    reference: Reference,
    *,
    parent: ResolvedTree | None = None,
    options: DeriveOptions = DeriveOptions(),  # immutable
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Derived:
    """Make a child of what lies at a path, and tag it.

    Args:
        store: Where the parent is and the child goes.
        path: The mount point of a writable mount, a staging directory, or any folder with a Kitfile.
        reference: The child's tag.
        parent: Of a folder; a staging directory has its own.
        options: How.
        progress: Told of each layer that is written.
        warn: Told what a person should know.

    Returns:
        What was done. When this returns and ``is_new``, everything is on disk and visible, but for a dry run.

    Raises:
        TagTaken: when the tag is there and must not be moved.
        FilesUntracked: when files are under no entry of the Kitfile.
        FilesLeftBehind: when the staging directory is to be emptied, and has other files.
        StagingNeeded, ParentGiven, MessageUnusable, PackUnusable, StagingUnusable: when the request can not be done.
        KitfileNotFound, KitfileMalformed, PathsUnpackable, IgnoreMalformed: when they can not be used.
        FileChanged, FileOpenForWriting, TreeChanged: when somebody writes to the tree, twice in a row.
        PathUnreadable, UpperUnreadable, UpperMalformed: when the tree can not be read.
        LayerCorrupt, BlobNotFound: when the parent's bytes are needed and are not there.
        StoreWriteFailed and the store's other errors: when the child can not be stored. Nothing is visible then.
    """
    _check(reference, options)
    tell = _once(warn or (lambda _text: None))
    staging = find_staging(path)
    if staging is not None and parent is not None:
        raise ParentGiven(staging.path, staging.record.reference)
    if staging is None and options.rebases:
        raise StagingNeeded(path)
    _check_tag(store, reference, options)
    with store.lease(f"commit {path}") as lease:
        for digest in _list_parents(store, staging, parent):
            lease.hold(digest)
        if staging is not None:
            parent = reopen(store, staging.record.reference, staging.manifests)
        for left in reversed(range(_TRIES)):
            try:
                with _open(store, path, staging, parent, reference, tell) as source:
                    deriving = _Deriving(store, lease, path, source, parent, options, progress or NoProgress(), tell)
                    derived = deriving.run(reference)
                    return replace(derived, staging=staging, is_as_read=source.is_as_read)
            except (FileChanged, FileOpenForWriting, TreeChanged) as error:
                if not left:
                    error.hint = _CHANGED_HINT if isinstance(error, FileChanged) else error.hint
                    raise
    raise AssertionError


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Tells each thing once, however often the tree is walked."""
    told = set[str]()

    def say(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return say


def _list_parents(store: Store, staging: Staging | None, parent: ResolvedTree | None) -> Sequence[Digest]:
    """What has to stay in the store while a child is made.

    Raises:
        StagingUnusable: when a staging directory is another store's.
    """
    if staging is None:
        return parent.digests if parent is not None else ()
    if os.path.realpath(store.home) != staging.record.store:
        home = staging.record.store
        raise StagingUnusable(staging.path, f"it belongs to the store {home}", f"--home {home}")
    return staging.manifests


def _check_tag(store: Store, reference: Reference, options: DeriveOptions) -> None:
    """Refuse a tag that is there before any work is done; `Change` refuses one that is made meanwhile."""
    assert reference.tag is not None  # it was checked
    taken = store.find_tag(reference.repository, reference.tag)
    if taken is not None and not options.moves_tag:
        raise TagTaken(reference.repository, reference.tag, taken.manifest)


def _check(reference: Reference, options: DeriveOptions) -> None:
    check_request([reference], options.created_s)
    if len(options.message.encode("utf-8", "surrogateescape")) > MESSAGE_SIZE_MAX:
        raise MessageUnusable(f"the message has more than {MESSAGE_SIZE_MAX} bytes")
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in options.message):
        raise MessageUnusable("the message is not text in UTF-8")


def _open(
    store: Store,
    path: Path,
    staging: Staging | None,
    parent: ResolvedTree | None,
    reference: Reference,
    warn: Callable[[str], None],
) -> AbstractContextManager[DeriveSource]:
    find = partial(_find_parents, store, parent, reference)
    if staging is None:
        return open_folder(store, path, parent, find, warn)
    assert parent is not None  # a staging directory has one
    return open_staged(store, staging, parent, find, warn)


def _find_parents(store: Store, parent: ResolvedTree | None, reference: Reference, kitfile: Kitfile) -> Parents:
    """What ``model.path`` leads to: as the parent was resolved while it says the same, else as tags stand now."""
    named = kitfile.model.path if kitfile.model is not None else ""
    if parent is not None and named and parent.kits[0].parent == named:
        return find_parents(store, kitfile, [reference], known=ResolvedTree(named, parent.kits[1:]))
    return find_parents(store, kitfile, [reference])


class _Deriving:
    """One try."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        path: Path,
        source: DeriveSource,
        parent: ResolvedTree | None,
        options: DeriveOptions,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._warn = warn
        self._path = path
        self._source = source
        self._parent = parent
        self._options = options
        self._progress = progress

    def run(self, reference: Reference) -> Derived:
        """Look, refuse, write."""
        for warning in iter_warnings(self._source.kitfile):
            self._warn(warning)
        if not self._options.ignores_untracked or self._source.parents.manifests:
            self._refuse_untracked()
        if self._options.rebases and isinstance(self._source.layers, MergedSource):
            refuse_left_behind(self._source.layers, self._source.kitfile)
        kit = self._parent.kits[0] if self._parent is not None else None
        form = _choose_layer_form(kit, self._options.compression)
        check_options(self._source.kitfile, PackOptions(model_pack=form.family is Family.MODELPACK))
        layers = plan_layers(self._source, self._source.parent, form)
        if self._parent is not None and self._is_unchanged(self._parent, layers):
            return Derived(self._parent.digests[0], self._parent, layers, is_new=False)
        if self._options.dry_run:
            return Derived(None, self._parent, layers, is_new=True)
        return Derived(self._write(layers, reference), self._parent, layers, is_new=True)

    def _refuse_untracked(self) -> None:
        source = self._source
        found = find_untracked(source.layers, source.kitfile, source.borrowed, self._warn)
        if found is not None and not self._options.ignores_untracked:
            raise found

    def _is_unchanged(self, parent: ResolvedTree, layers: Sequence[DerivedLayer]) -> bool:
        kit = parent.kits[0]
        if any(layer.state is not LayerState.UNCHANGED for layer in layers) or kit.kitfile is None:
            return False
        kept = [layer.parent.descriptor.digest for layer in layers if layer.parent is not None]
        carried = self._source.parent.carried
        if kept != [layer.digest for layer in kit.manifest.layers if layer not in carried]:
            return False
        same_parents = tuple(self._source.parents.manifests) == parent.digests[1:]
        return same_parents and without_digests(self._source.kitfile) == without_digests(kit.kitfile)

    def _write(self, layers: Sequence[DerivedLayer], reference: Reference) -> Digest:
        plans = [layer.plan for layer in layers if layer.plan is not None]
        packed = iter(pack_layers(self._store, self._lease, self._source.layers, plans, self._progress, finds=False))
        if not self._source.is_as_read():
            raise TreeChanged(self._path)
        publication = Publication(self._store, self._lease)
        descriptors: list[Descriptor] = []
        digests: list[tuple[Digest, Digest]] = []
        for layer in layers:
            if layer.state is LayerState.REMOVED:
                continue
            written = next(packed) if layer.plan is not None else None
            descriptors.append(self._add(publication, layer, written))
            digests.append(self._identify(descriptors[-1], written))
        carried = [publication.keep_layer(descriptor) for descriptor in self._source.parent.carried]
        seconds = time.time() if self._options.created_s is None else self._options.created_s
        form = choose_form(
            self._source.kitfile,
            digests,
            seconds,
            self._parent,
            self._options.message,
            [self._identify(descriptor, None)[1] for descriptor in carried],
        )
        parents = self._source.parents.manifests
        moves_tags = self._options.moves_tag
        return publication.commit(form, [*descriptors, *carried], parents, [reference], moves_tags=moves_tags)

    def _add(self, publication: Publication, layer: DerivedLayer, written: PackedLayer | None) -> Descriptor:
        if written is not None:
            return publication.add_layer(written)
        assert layer.parent is not None  # it is unchanged
        return publication.keep_layer(layer.parent.descriptor)

    def _identify(self, descriptor: Descriptor, written: PackedLayer | None) -> tuple[Digest, Digest]:
        """A layer's digest and diff_id."""
        if written is not None:
            return written.index.digest, written.index.diff_id
        record = self._store.find_layer(descriptor.digest)
        return descriptor.digest, record.diff_id if record is not None else descriptor.digest


def _choose_layer_form(kit: Kit | None, forced: PackCompression | None) -> Form:
    if kit is None:
        return Form(Family.KITOPS, PackCompression.NONE, forced, is_legacy=False)
    legacy = is_legacy(kit)
    is_gzip = legacy and any(layer.type.compression is Compression.GZIP for layer in kit.layers[:1])
    family = (
        Family.MODELPACK if kit.manifest.is_modelpack else next((one.type.family for one in kit.layers), Family.KITOPS)
    )
    compression = PackCompression.GZIP_FASTEST if is_gzip else PackCompression.NONE
    return Form(family, compression, forced, is_legacy=legacy)
