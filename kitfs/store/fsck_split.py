"""Checks of split blobs: their recipes, their members, and the pins that keep these.

Parts of ``fsck``, which see; each ``find_<damage>`` takes its view, yields findings and changes nothing. A split blob
whose recipe is damaged can still be mounted, since members have files of their own: what is lost is the blob as
published.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.store.content import hash_content
from kitfs.store.errors import BlobCorrupt, BlobNotFound
from kitfs.store.findings import Finding, Weight
from kitfs.store.pins import expected_pins
from kitfs.store.recipe import Recipe, read_recipe
from kitfs.store.stamp import find_status

if TYPE_CHECKING:
    from kitfs.store.fsck import View

_AGAIN = "; importing its ModelKit again heals it"


def find_corrupt_recipes(view: View) -> Iterator[Finding]:
    """Recipes that do not verify, or are of another size than their blob's record."""
    for digest, record in view.blobs.items():
        if record.form != "split":
            continue
        try:
            size = read_recipe(view.layout, digest).size
        except BlobCorrupt as error:
            yield Finding("corrupt-recipe", str(digest), error.reason + _AGAIN, Weight.LOST)
        except BlobNotFound:
            continue  # named by find_missing_blobs
        else:
            if size != record.size:
                detail = f"its recipe is of {size} bytes, expected {record.size}"
                yield Finding("corrupt-recipe", str(digest), detail, Weight.LOST)


def find_wrong_pins(view: View) -> Iterator[Finding]:
    """Members of split blobs without a record, and pins that do not follow from the recipes."""
    recipes = _read_recipes(view)
    unknown = {digest for digest, record in view.blobs.items() if record.form == "split" and digest not in recipes}
    expected = expected_pins(recipes.values())
    for digest, blobs in expected.items():
        if digest not in view.members:
            is_there = find_status(view.layout.member(digest)) is not None
            weight = Weight.REPAIRABLE if is_there else Weight.LOST
            yield Finding("unrecorded-member", str(digest), f"it is a part of blob {blobs[0]}", weight)
    for digest, record in view.members.items():
        pins = [pin for pin in record.pins if pin not in unknown]
        if sorted(pins) != expected.get(digest, []):
            detail = f"it has {len(pins)} pins, expected {len(expected.get(digest, []))}"
            yield Finding("wrong-pins", str(digest), detail, Weight.REPAIRABLE)


def _read_recipes(view: View) -> dict[Digest, Recipe]:
    recipes = {}
    for digest, record in view.blobs.items():
        if record.form == "split":
            try:
                recipes[digest] = read_recipe(view.layout, digest)
            except (BlobCorrupt, BlobNotFound):
                continue
    return recipes


def find_damaged_members(view: View) -> Iterator[Finding]:
    """Members of split blobs that were found to hold other bytes."""
    for digest, record in view.members.items():
        if record.state == "damaged":
            detail = f"its bytes are wrong, and {len(record.pins)} layers need it" + _AGAIN
            yield Finding("damaged-member", str(digest), detail, Weight.LOST)


def find_wrong_split(view: View, digest: Digest) -> Iterator[Finding]:
    """A split blob that its recipe and members do not give back: reads all of them."""
    try:
        actual, size = hash_content(view.layout, digest)
    except (BlobCorrupt, BlobNotFound):
        return  # named by find_corrupt_recipes, find_missing_blobs or as the member's damage
    except OSError as error:
        yield Finding("corrupt-recipe", str(digest), f"it can not be read: {error.strerror}", Weight.LOST)
        return
    view.size_read += size
    if actual != digest:
        detail = f"its recipe and members give {actual}{_AGAIN}"
        yield Finding("corrupt-recipe", str(digest), detail, Weight.LOST)
