"""``kitfs list``, ``tag`` and ``remove``: names of ModelKits in the store, in kit's words and forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_size, print_json, print_result, print_table, warn
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kitfs.digest import Digest
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store

NONE = "<none>"
"""What kit prints where there is no name, tag or author."""

HEADERS = ("REPOSITORY", "TAG", "MAINTAINER", "NAME", "SIZE", "DIGEST")


class ReferenceNotFound(NotFoundError):
    """A reference that the store does not hold."""

    hint = "kitfs list shows what is there"

    def __init__(self, reference: Reference) -> None:
        super().__init__(f"model {reference.display} not found")
        self.reference = reference


class NotTagged(UsageError):
    """A ModelKit without a name was to be removed; it has none to lose."""

    hint = "kitfs remove --all removes all untagged ModelKits that nothing uses"

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"{digest} has no tag here")
        self.digest = digest


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


@verb("list", short_help="List ModelKits in the store.")
@click.argument("repository", required=False)
def list_(settings: Settings, repository: str | None) -> None:
    """List ModelKits: all, or those of REPOSITORY, which may name a tag or digest."""
    kits: list[ListedKit] = []
    wanted = _parse(repository, default_tag=None) if repository else None
    if settings.home.exists():
        with settings.open_store(create=False) as store:
            kits = list_kits(store, wanted)
    if settings.json:
        print_json(kits)
    elif settings.quiet:
        for digest in dict.fromkeys(kit.digest for kit in kits):
            print_result(digest)
    else:
        print_table(HEADERS, [row for kit in kits for row in kit.rows()])


def list_kits(store: Store, wanted: Reference | None = None) -> list[ListedKit]:
    """What is in the store, in kit's order: by repository, then ModelKitID, then tag; unnamed ones as kit's ``_``.

    A ModelKit whose manifest or config can not be read is listed without what they say, with a warning.

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
    return [_describe(store, *key, sorted(tags)) for key, tags in sorted(groups.items())]


def _is_wanted(wanted: Reference, repository: str, tag: str | None, manifest: Digest) -> bool:
    from kitfs.oci.reference import UNNAMED_REPOSITORY

    if wanted.digest is not None:
        return wanted.digest == manifest and wanted.repository in (repository, UNNAMED_REPOSITORY)
    return wanted.repository == repository and wanted.tag in (None, tag)


def _describe(store: Store, repository: str, digest: Digest, tags: list[str]) -> ListedKit:
    from kitfs.oci.manifest import parse_manifest
    from kitfs.transfer.parents import read_kitfile

    shown = repository.removeprefix("localhost/").removeprefix("_") or NONE
    try:
        manifest = parse_manifest(store.read_blob(digest))
        kitfile = read_kitfile(manifest, store.read_blob(manifest.config.digest))
    except KitfsError as error:
        warn(f"{shown}@{digest} can not be read: {error}")
        return ListedKit(shown, str(digest), tags, NONE, NONE, NONE)
    package = kitfile.package if kitfile else None
    return ListedKit(
        repo=shown,
        digest=str(digest),
        tags=tags,
        modelName=(package.name if package else "") or NONE,
        size=format_size(sum(layer.size for layer in manifest.layers)),
        author=package.authors[0] if package and package.authors else NONE,
    )


@verb("tag", short_help="Create a tag that refers to a ModelKit.")
@click.argument("source")
@click.argument("target")
def tag(settings: Settings, source: str, target: str) -> None:
    """Create or move the tag TARGET to refer to the ModelKit SOURCE."""
    wanted, named = _parse(source), _parse(target)
    if named.tag is None:
        raise UsageError(f"{target} is not a tag")
    with settings.open_store(create=False) as store, store.lease("tag") as lease:
        digest = _get(store, wanted)
        lease.hold(digest)
        change = store.change(lease)
        change.set_tag(named.repository, named.tag, digest, "here")
        change.commit()
    if settings.quiet:
        print_result(str(digest))
    else:
        print_result(f"Modelkit {wanted.display} tagged as {named.display}")


def _parse(text: str, *, default_tag: str | None = "latest") -> Reference:
    from kitfs.oci.reference import parse_reference

    return parse_reference(text, default_tag=default_tag)


def _get(store: Store, reference: Reference) -> Digest:
    from kitfs.transfer.parents import find_digest

    digest = find_digest(store, reference)
    if digest is None:
        raise ReferenceNotFound(reference)
    return digest


@verb("remove", short_help="Remove ModelKits from the store.")
@click.argument("reference", required=False)
@click.option("-f", "--force", is_flag=True, help="Remove the ModelKit with all other tags that refer to it.")
@click.option("-a", "--all", "everything", is_flag=True, help="Remove all untagged ModelKits; with --force, all.")
def remove(settings: Settings, reference: str | None, force: bool, everything: bool) -> None:
    """Remove the tags of REFERENCE (name:tag, name:tag,tag…, or name@digest with all its tags).

    What no tag, mount or running command uses any more is taken off the disk by kitfs gc.
    """
    from kitfs.oci.reference import parse_references

    if reference is None and not everything:
        raise click.UsageError("modelkit is required for remove unless --all is specified")
    if reference is not None and everything:
        raise click.UsageError("modelkit should not be specified when --all flag is used")
    with settings.open_store(create=False) as store:
        if reference is None:
            lines = _remove_all(store, force=force)
        else:
            lines = _remove_references(store, parse_references(reference), force=force)
    for line in lines:
        print_result(line)


def _remove_references(store: Store, references: list[Reference], *, force: bool) -> list[str]:
    """Remove names in one change, so that none goes when one of them is not there."""
    removed: dict[tuple[str, str], None] = {}
    lines = []
    for reference in references:
        digest = _get(store, reference)
        names = _names_of(store, reference, digest, force=force)
        if not names:
            raise NotTagged(digest)
        removed |= dict.fromkeys(names)
        lines.append(f"Removed {reference.display} (digest {digest})")
    _untag(store, list(removed))
    return lines


def _names_of(store: Store, reference: Reference, digest: Digest, *, force: bool) -> list[tuple[str, str]]:
    """The names that go with a reference: itself, or by digest or force all of its ModelKit in its repository."""
    from kitfs.oci.reference import UNNAMED_REPOSITORY

    if reference.tag is not None and not force:
        return [(reference.repository, reference.tag)]
    inside = None if reference.repository == UNNAMED_REPOSITORY else reference.repository
    return [(repository, tag) for repository, tag, record in store.iter_tags(inside) if record.manifest == digest]


def _remove_all(store: Store, *, force: bool) -> list[str]:
    from kitfs.store.gc import gc

    lines = []
    if force:
        names = [(repository, tag) for repository, tag, _ in store.iter_tags()]
        _untag(store, names)
        lines = [f"Untagged {repository.removeprefix('localhost/')}:{tag}" for repository, tag in names]
    return lines + [f"Removed {victim.name}" for victim in gc(store).victims if victim.kind == "ModelKit"]


def _untag(store: Store, names: list[tuple[str, str]]) -> None:
    if not names:
        return
    with store.lease("remove") as lease:
        change = store.change(lease)
        for repository, tag in names:
            change.remove_tag(repository, tag)
        change.commit()
