"""``kitfs list``: the ModelKits in the store, in kit's table and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_size, print_json_text, print_result, print_table, warn
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kitfs.digest import Digest
    from kitfs.modelkit.filters import Filter
    from kitfs.oci.kitfile import Artifact, Kitfile
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store

NONE = "<none>"
"""What kit prints where there is no name, tag or author."""

HEADERS = ("REPOSITORY", "TAG", "MAINTAINER", "NAME", "SIZE", "DIGEST")


@dataclass(frozen=True, slots=True)
class ListedKit:
    """One ModelKit in one repository: a line of the list for each tag. Fields are kit's JSON, in its order."""

    repo: str
    digest: str
    tags: list[str]
    modelName: str  # noqa: N815 - kit's JSON key
    size: str
    author: str

    def rows(self) -> Iterable[tuple[str, ...]]:
        """The table's lines."""
        for tag in self.tags or [NONE]:
            yield (self.repo, tag, self.author, self.modelName, self.size, self.digest)


@verb(
    "list",
    examples=["kitfs list", "kitfs list myllm --filter datasets:train", "kitfs list --format json"],
    short_help="List the ModelKits in the store.",
)
@click.argument("repository", required=False)
@click.option("-f", "--filter", "filters", multiple=True, metavar="TYPES[:NAMES]",
              help="Only ModelKits with a part that matches; several add up. As for unpack.")  # fmt: skip
def list_(settings: Settings, repository: str | None, filters: tuple[str, ...]) -> None:
    """List ModelKits: all, or those of REPOSITORY, which may name a tag or digest.

    SIZE is that of the layers as they were published. With -q each ModelKitID once.
    """
    from kitfs.modelkit.filters import parse_filters
    from kitfs.oci import go_json
    from kitfs.oci.reference import parse_reference

    kits: list[ListedKit] = []
    wanted = parse_reference(repository, default_tag=None) if repository else None
    parsed = parse_filters(filters)
    if settings.home.exists():
        with settings.open_store(create=False) as store:
            kits = list_kits(store, wanted, parsed)
    if settings.json:
        print_json_text(go_json.encode([asdict(kit) for kit in kits]))
    elif settings.quiet:
        for digest in dict.fromkeys(kit.digest for kit in kits):
            print_result(digest)
    else:
        print_table(HEADERS, [row for kit in kits for row in kit.rows()])


def list_kits(store: Store, wanted: Reference | None = None, filters: Sequence[Filter] = ()) -> list[ListedKit]:
    """What is in the store, in kit's order: by repository, then ModelKitID, then tag; unnamed ones as kit's ``_``.

    A ModelKit whose manifest or config can not be read is listed without what they say, with a warning; not where
    filters are given, as nothing of it is known to match.

    Raises:
        IntegrityError: when the index can not be read.
    """
    from kitfs.oci.reference import UNNAMED_REPOSITORY

    groups: dict[tuple[str, Digest], list[str]] = {}
    tagged: set[Digest] = set()
    for repository, tag, record in store.iter_tags():
        tagged.add(record.manifest)
        if wanted is None or _is_wanted(wanted, repository, tag, record.manifest):
            groups.setdefault((repository, record.manifest), []).append(tag)
    for digest, _ in store.iter_manifests():
        if digest not in tagged and (wanted is None or _is_wanted(wanted, UNNAMED_REPOSITORY, None, digest)):
            groups[UNNAMED_REPOSITORY, digest] = []
    described = (_describe(store, *key, sorted(tags), filters) for key, tags in sorted(groups.items()))
    return [kit for kit in described if kit is not None]


def _is_wanted(wanted: Reference, repository: str, tag: str | None, manifest: Digest) -> bool:
    from kitfs.oci.reference import UNNAMED_REPOSITORY

    if wanted.digest is not None:
        return wanted.digest == manifest and wanted.repository in (repository, UNNAMED_REPOSITORY)
    return wanted.repository == repository and wanted.tag in (None, tag)


def _describe(
    store: Store, repository: str, digest: Digest, tags: list[str], filters: Sequence[Filter]
) -> ListedKit | None:
    from kitfs.oci.manifest import parse_manifest
    from kitfs.transfer.parents import read_kitfile

    shown = repository.removeprefix("localhost/").removeprefix("_") or NONE
    try:
        manifest = parse_manifest(store.read_blob(digest))
        kitfile = read_kitfile(manifest, store.read_blob(manifest.config.digest))
    except KitfsError as error:
        warn(f"{shown}@{digest} can not be read: {error}")
        return None if filters else ListedKit(shown, str(digest), tags, NONE, NONE, NONE)
    if filters and not _has_match(kitfile, filters):
        return None
    package = kitfile.package if kitfile else None
    return ListedKit(
        repo=shown,
        digest=str(digest),
        tags=tags,
        modelName=(package.name if package else "") or NONE,
        size=format_size(sum(layer.size for layer in manifest.layers)),
        author=package.authors[0] if package and package.authors else NONE,
    )


def _has_match(kitfile: Kitfile | None, filters: Sequence[Filter]) -> bool:
    """Whether some filter wants the Kitfile or one of its entries (kitops ``KitfileContainsMatchingLayer``)."""
    if kitfile is None:
        return False
    entries = list(_iter_entries(kitfile))
    return any(one.wants_kitfile or any(map(one.wants, entries)) for one in filters)


def _iter_entries(kitfile: Kitfile) -> Iterator[Artifact]:
    """What has a layer, and as with kit what has none: a model that is another ModelKit's, a dataset elsewhere."""
    from kitfs.oci.kitfile import Artifact, iter_artifacts
    from kitfs.oci.mediatype import LayerKind

    yield from iter_artifacts(kitfile)
    if kitfile.model is not None:
        yield Artifact(LayerKind.MODEL, "", kitfile.model.name, kitfile.model.path, None, None)
    for dataset in kitfile.datasets:
        yield Artifact(LayerKind.DATASET, "", dataset.name, dataset.path, None, None)
