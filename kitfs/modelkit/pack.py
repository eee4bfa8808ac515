"""Makes a ModelKit of a directory and its Kitfile, as ``kit pack`` does.

Plain tar layers have the bytes that kit 0.5 and newer write (same tree, same modes: same digest, so both tools share
them); they can be compressed or raw instead (``pack_options``), MCP bundles always are raw. The manifest is in the form
of kit 1.10: artifact type, each layer's path, creation time, and the authors, which the specification asks for; or it
is a ModelPack's. Layers go into the store several at once; they, config, manifest and tags become visible together in
one change. Never follows a symbolic link, never writes outside the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import NotFoundError
from kitfs.modelkit.ignore import iter_entry_paths
from kitfs.modelkit.kitfile_check import check_kitfile, looking_into
from kitfs.modelkit.pack_layers import pack_layers
from kitfs.modelkit.pack_manifest import ManifestForm
from kitfs.modelkit.pack_options import PackOptions, check_options, plan_layers
from kitfs.modelkit.pack_source import PackUnusable, open_source
from kitfs.modelkit.parentage import find_parents
from kitfs.modelkit.publish import Publication
from kitfs.oci.kitfile import (
    KITFILE_NAMES,
    KITFILE_SIZE_MAX,
    clean_path,
    iter_warnings,
)
from kitfs.oci.mediatype import LayerFormat
from kitfs.oci.reference import Reference
from kitfs.progress import NoProgress, Progress
from kitfs.store.store import Store

CREATED_S_MAX = 253_402_300_799
"""The last second of the year 9999, where RFC 3339 ends."""

DEFAULT_OPTIONS = PackOptions()


class KitfileNotFound(NotFoundError):
    """No Kitfile where one was looked for.

    Attributes:
        path: The directory or the file.
        reason: What is the matter.
    """

    hint = "name one with -f"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"no Kitfile: {path}: {reason}")
        self.path = path
        self.reason = reason


def pack(
    store: Store,
    context: Path,
    kitfile_path: Path | None,
    references: Sequence[Reference],
    *,
    options: PackOptions = DEFAULT_OPTIONS,
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
        options: In which form.
        kitfile_raw: The Kitfile's bytes, where they were read already (from standard input).
        created_s: Creation time to record, seconds since the epoch; None for now.
        progress: Told of each layer.
        warn: Told what a person should know: symbolic links passed over, layers without files.

    Returns:
        The ModelKitID, a function of the tree, the options, the time and the version of kitfs. When this returns,
        everything is on disk and visible.

    Raises:
        KitfileNotFound, KitfileMalformed, IgnoreMalformed: when the Kitfile or ``.kitignore`` can not be used.
        PackUnusable, PathsUnpackable: when the request, its options or paths of the Kitfile can not be used.
        ModelKitNotFound, ParentChainMalformed: when ``model.path`` is a reference that can not be followed.
        PathUnreadable, FileChanged: when reading the directory fails.
        MemberUnwritable, LayerMalformed, JsonUnsupported: when it holds what the formats can not.
        StoreWriteFailed and the store's other errors: when it can not be stored. Nothing is visible then.
    """
    tell = warn or (lambda _text: None)
    raw = read_kitfile(context, kitfile_path) if kitfile_raw is None else kitfile_raw
    with looking_into(context, raw_layers=options.layer_format is LayerFormat.RAW) as find_problem:
        kitfile = check_kitfile(raw, find_problem)
    check_request(references, created_s)
    check_options(kitfile, options)
    for warning in iter_warnings(kitfile):
        tell(warning)
    parents = find_parents(store, kitfile, references)
    model_link = clean_path(kitfile.model.path) if kitfile.model is not None else ""
    with open_source(context, [*iter_entry_paths(kitfile), *parents.paths], model_link, tell) as source:
        plans = plan_layers(source, kitfile, options)
        with store.lease(f"pack {context}") as lease:
            layers = pack_layers(store, lease, source, plans, progress or NoProgress())
            publication = Publication(store, lease)
            descriptors = [publication.add_layer(layer) for layer in layers]
            digests = [(layer.index.digest, layer.index.diff_id) for layer in layers]
            seconds = time.time() if created_s is None else created_s
            form = ManifestForm(kitfile, digests, seconds, model_pack=options.model_pack)
            return publication.commit(form, descriptors, parents.manifests, references)


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


def check_request(references: Sequence[Reference], created_s: int | None) -> None:
    """See that names can be tags and the time can be written.

    Raises:
        PackUnusable: when not.
    """
    for reference in references:
        if reference.tag is None:
            raise PackUnusable(f"{reference.display} is no name with a tag, and only a tag can be set")
    if created_s is not None and not 0 <= created_s <= CREATED_S_MAX:
        raise PackUnusable(f"creation time {created_s} is out of range")
