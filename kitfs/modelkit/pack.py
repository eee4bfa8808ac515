"""Makes a ModelKit of a directory and its Kitfile, as ``kit pack`` does.

Layers are plain tar with the bytes that kit 0.5 and newer write (same tree, same modes: same digest, so both tools
share them), MCP bundles are raw. The manifest is in the form of kit 1.10: artifact type, each layer's path, creation
time, and the authors, which the specification asks for. Layers go into the store one by one; they, config, manifest
and tags become visible together in one change. Never follows a symbolic link, never writes outside the store.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kitfs import __version__
from kitfs.archive.tar_toc import MemberKind
from kitfs.digest import Digest
from kitfs.errors import NotFoundError, UsageError
from kitfs.layer.index_blob import add_image_index
from kitfs.layer.indexer import LayerIndex
from kitfs.modelkit import walk
from kitfs.modelkit.ignore import IGNORE_NAME, IGNORE_SIZE_MAX, IgnoreRules, iter_entry_paths, parse_ignore
from kitfs.modelkit.kitfile_check import check_kitfile
from kitfs.modelkit.layerwriter import write_raw_layer, write_tar_layer
from kitfs.modelkit.parentage import Parents, find_parents
from kitfs.oci import go_json
from kitfs.oci.kitfile import (
    KITFILE_NAMES,
    KITFILE_SIZE_MAX,
    Artifact,
    Kitfile,
    KitfileMalformed,
    clean_path,
    encode_kitfile_json,
    iter_artifacts,
    iter_warnings,
    replace_digests,
)
from kitfs.oci.manifest import (
    ANNOTATION_AUTHORS,
    ANNOTATION_CLI_VERSION,
    ANNOTATION_CREATED,
    ANNOTATION_FILE_METADATA,
    ANNOTATION_FILEPATH,
    ANNOTATION_INDEX,
    ANNOTATION_SUBTYPE,
    MANIFEST_SIZE_MAX,
    Descriptor,
    encode_manifest,
    find_index_digest,
)
from kitfs.oci.mediatype import CONFIG_KITOPS, OCI_MANIFEST, LayerFormat, LayerKind, LayerType, encode_layer_type
from kitfs.oci.reference import Reference
from kitfs.progress import NoProgress, Progress
from kitfs.store.change import Change
from kitfs.store.lease import Lease
from kitfs.store.records import ManifestRecord
from kitfs.store.split_ingest import is_worth_splitting
from kitfs.store.store import Store

CREATED_S_MAX = 253_402_300_799
"""The last second of the year 9999, where RFC 3339 ends."""


class KitfileNotFound(NotFoundError):
    """No Kitfile where one was looked for.

    Attributes:
        path: The directory or the file.
    """

    hint = "name one with -f"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"no Kitfile: {path}: {reason}")
        self.path = path


class PackUnusable(UsageError):
    """A request to pack that makes no sense: no directory, a tag that is a digest, a time that is no time."""


@dataclass(slots=True)
class _Packing:
    """What one pack carries along."""

    store: Store
    lease: Lease
    change: Change
    context_fd: int
    rules: IgnoreRules
    progress: Progress
    warn: Callable[[str], None]
    model_link: str = ""
    skipped: set[str] = field(default_factory=set)


def pack(
    store: Store,
    context: Path,
    kitfile_path: Path | None,
    references: Sequence[Reference],
    *,
    kitfile_raw: bytes | None = None,
    created_s: int | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Digest:
    """Pack a directory and tag the result.

    Args:
        store: Where it goes.
        context: The directory; paths in the Kitfile are relative to it.
        kitfile_path: The Kitfile, or None to look for it in the directory.
        references: Tags to set; without any the ModelKit stays untagged.
        kitfile_raw: The Kitfile's bytes, where they were read already (from standard input).
        created_s: Creation time to record, seconds since the epoch; None for now.
        progress: Told of each layer.
        warn: Told what a person should know: symbolic links passed over, layers without files.

    Returns:
        The ModelKitID. When this returns, everything is on disk and visible.

    Raises:
        KitfileNotFound, KitfileMalformed, IgnoreMalformed: when the Kitfile or ``.kitignore`` can not be used.
        PackUnusable, PathsUnpackable: when the request or paths of the Kitfile can not be used.
        ModelKitNotFound, ParentChainMalformed: when ``model.path`` is a reference that can not be followed.
        PathUnreadable, FileChanged: when reading the directory fails.
        MemberUnwritable, LayerMalformed, JsonUnsupported: when it holds what the formats can not.
        StoreWriteFailed and the store's other errors: when it can not be stored. Nothing is visible then.
    """
    tell = warn or (lambda _text: None)
    kitfile = check_kitfile(read_kitfile(context, kitfile_path) if kitfile_raw is None else kitfile_raw, context)
    _check_request(references, created_s)
    for warning in iter_warnings(kitfile):
        tell(warning)
    parents = find_parents(store, kitfile, references)
    with _opened_context(context) as context_fd:
        patterns = parse_ignore(_read_ignore(context_fd))
        rules = IgnoreRules(patterns, [*iter_entry_paths(kitfile), *parents.paths])
        with store.lease(f"pack {context}") as lease:
            change = store.change(lease)
            packing = _Packing(store, lease, change, context_fd, rules, progress or NoProgress(), tell)
            if kitfile.model is not None:
                packing.model_link = clean_path(kitfile.model.path)
            return _pack_all(packing, kitfile, parents, references, time.time() if created_s is None else created_s)


def read_kitfile(context: Path, kitfile_path: Path | None) -> bytes:
    """The bytes of a Kitfile: the one that was named, or the first of kit's names that is in the directory.

    Raises:
        KitfileNotFound: when there is none or it can not be read.
    """
    found = kitfile_path or next((context / name for name in KITFILE_NAMES if (context / name).is_file()), None)
    if found is None:
        raise KitfileNotFound(
            context, "is no directory" if not context.is_dir() else "none of " + ", ".join(KITFILE_NAMES)
        )
    try:
        with found.open("rb") as file:
            return file.read(KITFILE_SIZE_MAX + 1)
    except OSError as error:
        raise KitfileNotFound(found, error.strerror or type(error).__name__) from error


def _pack_all(
    packing: _Packing, kitfile: Kitfile, parents: Parents, references: Sequence[Reference], created_s: float
) -> Digest:
    layers: list[Descriptor] = []
    digests: list[tuple[Digest, Digest]] = []
    for artifact in iter_artifacts(kitfile):
        descriptor, diff_id = _pack_layer(packing, artifact)
        layers.append(descriptor)
        digests.append((descriptor.digest, diff_id))
    raw_config = encode_kitfile_json(replace_digests(kitfile, digests))
    config = Descriptor(CONFIG_KITOPS, _put_small(packing, raw_config, CONFIG_KITOPS), len(raw_config))
    raw = encode_manifest(config, layers, _annotations(kitfile, created_s))
    manifest = _put_small(packing, raw, OCI_MANIFEST)
    for parent in parents.manifests:
        packing.lease.hold(parent)
    indexes = list(filter(None, map(find_index_digest, layers)))
    record = ManifestRecord(config.digest, [layer.digest for layer in layers], list(parents.manifests), indexes)
    packing.change.add_manifest(manifest, record)
    for reference in references:
        if reference.tag is not None:
            packing.change.set_tag(reference.repository, reference.tag, manifest)
    packing.change.commit()
    return manifest


def _pack_layer(packing: _Packing, artifact: Artifact) -> tuple[Descriptor, Digest]:
    path = clean_path(artifact.path)
    size, entry_count = _measure(packing, artifact, path)
    step = packing.progress.begin(f"{artifact.kind} {path}", size)
    annotations = {ANNOTATION_FILEPATH: path}
    layer_type = LayerType(artifact.kind)
    if artifact.subtype:
        annotations[ANNOTATION_SUBTYPE] = artifact.subtype
    entries = _entries(packing, path)
    if artifact.kind is LayerKind.MCPB:
        layer_type = LayerType(artifact.kind, LayerFormat.RAW)
        index, status = write_raw_layer(packing.store, packing.lease, _only_file(entries, path), step)
        annotations[ANNOTATION_FILE_METADATA] = _file_metadata(path, status)
    else:
        splits = is_worth_splitting(entry_count, size, size)
        index = write_tar_layer(packing.store, packing.lease, entries, step, splits=splits)
    step.finish()
    media_type = encode_layer_type(layer_type)
    _add_layer(packing.change, index, media_type)
    bound = add_image_index(packing.store, packing.lease, packing.change, index)
    if bound is not None:
        annotations[ANNOTATION_INDEX] = str(bound)
    return Descriptor(media_type, index.digest, index.size, annotations), index.diff_id


def _entries(packing: _Packing, path: str) -> Iterator[walk.Entry]:
    rules = packing.rules.layer(path)
    return walk.iter_entries(packing.context_fd, path, rules, lambda name, mode: _skipped(packing, name, mode))


def _skipped(packing: _Packing, path: str, mode: int) -> None:
    """Warn once of a symbolic link or device; the link that a mount shows at ``model`` is our own."""
    if path in packing.skipped:
        return
    packing.skipped.add(path)
    if stat.S_ISLNK(mode) and path == "model" and packing.model_link:
        with walk.naming(path):
            if os.readlink("model", dir_fd=packing.context_fd) == packing.model_link:
                return
    what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
    packing.warn(f"{path} is {what} and is not packed")


def _measure(packing: _Packing, artifact: Artifact, path: str) -> tuple[int, int]:
    """Bytes of all files of a layer, and its files and directories; warns of what would surprise."""
    size = count = entry_count = 0
    for entry in _entries(packing, path):
        entry_count += 1
        if entry.kind is MemberKind.FILE:
            size += entry.status.st_size
            count += 1
        if ".." in entry.path:
            packing.warn(f"{entry.path} holds '..' in its name; kit leaves such files out and does not unpack them")
    if not count:
        packing.warn(f"no files in the {artifact.kind} layer with path {path}")
    return size, entry_count


def _only_file(entries: Iterator[walk.Entry], path: str) -> walk.Entry:
    for entry in entries:
        if entry.path == path and entry.kind is MemberKind.FILE:
            return entry
    raise walk.PathsUnpackable([f"{path} is no file, or is left out by {IGNORE_NAME}"])


def _file_metadata(path: str, status: os.stat_result) -> str:
    """What model-spec records of a raw layer's file; the time is the epoch, so that equal files pack equally."""
    metadata = {
        "name": path.rpartition("/")[2],
        "mode": stat.S_IMODE(status.st_mode) & 0o777,
        "uid": 0,
        "gid": 0,
        "size": status.st_size,
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": 0,
    }
    return go_json.encode(metadata).decode()


def _annotations(kitfile: Kitfile, created_s: float) -> dict[str, str]:
    created = datetime.fromtimestamp(int(created_s), UTC)
    annotations = {
        ANNOTATION_CLI_VERSION: f"kitfs {__version__}",
        ANNOTATION_CREATED: f"{created:%Y-%m-%dT%H:%M:%SZ}",
    }
    if kitfile.package.authors:
        annotations[ANNOTATION_AUTHORS] = ", ".join(kitfile.package.authors)
    return annotations


def _add_layer(change: Change, index: LayerIndex, media_type: str) -> None:
    change.add_blob(index.digest, index.size, media_type=media_type)
    change.add_layer(index.digest, index.record, index.toc, index.span_checksums, index.checkpoints)


def _put_small(packing: _Packing, raw: bytes, media_type: str) -> Digest:
    if len(raw) > MANIFEST_SIZE_MAX:
        raise KitfileMalformed(
            [f"it makes a config or manifest of {len(raw)} bytes, at most {MANIFEST_SIZE_MAX} are read"]
        )
    with packing.store.ingest(packing.lease) as ingest:
        ingest.write(raw)
        digest = ingest.commit_blob(size=len(raw))
    packing.change.add_blob(digest, len(raw), media_type=media_type)
    return digest


def _check_request(references: Sequence[Reference], created_s: int | None) -> None:
    for reference in references:
        if reference.tag is None:
            raise PackUnusable(f"{reference.display} is no name with a tag, and only a tag can be set")
    if created_s is not None and not 0 <= created_s <= CREATED_S_MAX:
        raise PackUnusable(f"creation time {created_s} is out of range")


def _read_ignore(context_fd: int) -> bytes:
    try:
        fd = os.open(IGNORE_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=context_fd)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise walk.PathUnreadable(IGNORE_NAME, error.strerror or type(error).__name__) from error
    with walk.naming(IGNORE_NAME), open(fd, "rb") as file:
        return file.read(IGNORE_SIZE_MAX + 1)


@contextmanager
def _opened_context(context: Path) -> Iterator[int]:
    try:
        fd = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PackUnusable(f"{context} can not be packed: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
