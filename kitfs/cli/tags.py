"""``kitfs tag`` and ``remove``: names of ModelKits in the store, in kit's words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json, print_result
from kitfs.cli.references import get_digest
from kitfs.cli.settings import Settings, verb
from kitfs.errors import UsageError

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store


class NotTagged(UsageError):
    """A ModelKit without a name was to be removed; it has none to lose."""

    hint = "kitfs remove --all removes all untagged ModelKits that nothing uses"

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"{digest} has no tag here")
        self.digest = digest


@dataclass(frozen=True, slots=True)
class Removed:
    """One line of what ``remove`` did.

    Attributes:
        text: In kit's words.
        reference: The name that went; for a ModelKit that went with its last name, itself.
    """

    text: str
    reference: str
    digest: str


@verb(
    "tag",
    examples=["kitfs tag myllm:3.1.4 registry.example.com/acme/myllm:3.1"],
    short_help="Create a tag that refers to a ModelKit.",
)
@click.argument("source")
@click.argument("target")
def tag(settings: Settings, source: str, target: str) -> None:
    """Create or move the tag TARGET to refer to the ModelKit SOURCE; without a tag of their own both mean latest."""
    from kitfs.oci.reference import parse_reference

    wanted, named = parse_reference(source), parse_reference(target)
    if named.tag is None:
        raise UsageError(f"{target} is not a tag")
    with settings.open_store(create=False) as store, store.lease("tag") as lease:
        digest = get_digest(store, wanted, failed="failed to tag modelkit")
        lease.hold(digest)
        change = store.change(lease)
        change.set_tag(named.repository, named.tag, digest, "here")
        change.commit()
    if settings.json:
        print_json({"source": wanted.display, "target": named.display, "digest": str(digest)})
    elif settings.quiet:
        print_result(str(digest))
    else:
        print_result(f"Modelkit {wanted.display} tagged as {named.display}")


@verb(
    "remove",
    examples=["kitfs remove myllm:3.1.4", "kitfs remove myllm:3.1.4,latest", "kitfs remove --all"],
    short_help="Remove ModelKits from the store.",
)
@click.argument("reference", required=False)
@click.option("-f", "--force", is_flag=True, help="Remove the ModelKit with all other tags that refer to it.")
@click.option("-a", "--all", "everything", is_flag=True, help="Remove all untagged ModelKits; with --force, all.")
def remove(settings: Settings, reference: str | None, force: bool, everything: bool) -> None:
    """Remove the tags of REFERENCE (name:tag, name:tag,tag…, or name@digest with all its tags).

    What no tag, mount or running command uses any more is taken off the disk by kitfs gc, and by --all. When one of
    several tags is not there, none is removed.
    """
    from kitfs.oci.reference import parse_references

    if reference is None and not everything:
        raise click.UsageError("modelkit is required for remove unless --all is specified")
    if reference is not None and everything:
        raise click.UsageError("modelkit should not be specified when --all flag is used")
    with settings.open_store(create=False) as store:
        if reference is None:
            done = _remove_all(store, force=force)
        else:
            done = _remove_references(store, parse_references(reference), force=force)
    if settings.json:
        print_json([{"reference": line.reference, "digest": line.digest} for line in done])
    elif settings.quiet:
        for digest in dict.fromkeys(line.digest for line in done):
            print_result(digest)
    else:
        for line in done:
            print_result(line.text)


def _remove_references(store: Store, references: list[Reference], *, force: bool) -> list[Removed]:
    """Remove names in one change, so that none goes when one of them is not there."""
    names: dict[tuple[str, str], None] = {}
    done = []
    for reference in references:
        digest = get_digest(store, reference, failed="failed to remove")
        found = _names_of(store, reference, digest, force=force)
        if not found:
            raise NotTagged(digest)
        names |= dict.fromkeys(found)
        done.append(Removed(f"Removed {reference.display} (digest {digest})", reference.display, str(digest)))
    _untag(store, list(names))
    return done


def _names_of(store: Store, reference: Reference, digest: Digest, *, force: bool) -> list[tuple[str, str]]:
    """The names that go with a reference: itself, or by digest or force all of its ModelKit in its repository."""
    from kitfs.oci.reference import UNNAMED_REPOSITORY

    if reference.tag is not None and not force:
        return [(reference.repository, reference.tag)]
    inside = None if reference.repository == UNNAMED_REPOSITORY else reference.repository
    return [(repository, tag) for repository, tag, record in store.iter_tags(inside) if record.manifest == digest]


def _remove_all(store: Store, *, force: bool) -> list[Removed]:
    """Take away what has no tag and is in no use, with ``force`` all tags first; the lines are in kit's order."""
    from kitfs.oci.reference import Reference
    from kitfs.store.gc import gc

    tags = sorted((repository, record.manifest, tag) for repository, tag, record in store.iter_tags()) if force else []
    _untag(store, [(repository, tag) for repository, _, tag in tags])
    gone = {victim.name for victim in gc(store).victims if victim.kind == "ModelKit"}
    done: dict[str, Removed] = {}
    for (repository, digest), names in groupby(tags, key=itemgetter(0, 1)):
        for reference in (Reference(repository, tag).display for _, _, tag in names):
            done[reference] = Removed(f"Untagged {reference}", reference, str(digest))
        if str(digest) in gone:
            name = Reference(repository, None, digest).display
            done[name] = Removed(f"Removed {name}", name, str(digest))
    nameless = sorted(gone - {removed.digest for removed in done.values()})
    return [*done.values(), *(Removed(f"Removed {digest}", digest, digest) for digest in nameless)]


def _untag(store: Store, names: list[tuple[str, str]]) -> None:
    if not names:
        return
    with store.lease("remove") as lease:
        change = store.change(lease)
        for repository, tag in names:
            change.remove_tag(repository, tag)
        change.commit()
