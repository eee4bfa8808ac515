"""Pins: which split blobs a member is a part of, kept in the member's record.

Used inside transactions by changes, GC, recovery and repairs. A pin is set in the transaction that records the split
blob and taken away in the one that forgets it, so at every moment the pins follow from the recipes of the recorded
split blobs; ``expected_pins`` says so for checks, and ``restore_pins`` makes it so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from kitfs.digest import Digest
from kitfs.store import catalog, schema
from kitfs.store.index import Txn
from kitfs.store.layout import Layout
from kitfs.store.recipe import Recipe, find_recipe
from kitfs.store.records import BlobRecord, MemberRecord
from kitfs.store.stamp import find_status


def merge_pins(old: MemberRecord | None, blobs: Iterable[Digest]) -> list[Digest]:
    """The pins of a record with more added, each once."""
    return sorted({*(old.pins if old is not None else ()), *blobs})


def pin_members(txn: Txn, layout: Layout, recipe: Recipe, now_s: int) -> None:
    """Pin all members of a recipe, recording those that have a file and no record.

    Raises:
        RecordCorrupt: when a member's record does not verify.
    """
    changed: dict[Digest, MemberRecord] = {}
    for digest, size in recipe.sizes().items():
        record = txn.find(schema.MEMBERS, digest.raw, MemberRecord)
        if record is None:
            status = find_status(layout.member(digest))
            if status is None or status.st_size != size:
                continue  # the check names it
            record = MemberRecord(size, "native", now_s)
        elif recipe.digest in record.pins:
            continue
        changed[digest] = msgspec.structs.replace(record, pins=merge_pins(record, [recipe.digest]))
    catalog.put_members(txn, changed)


def unpin_members(txn: Txn, blobs: Collection[Digest]) -> None:
    """Take away all pins of blobs that are no longer split or no longer there.

    Raises:
        RecordCorrupt: when a member's record does not verify.
    """
    changed: dict[Digest, MemberRecord] = {}
    for key, record in txn.iter(schema.MEMBERS, MemberRecord):
        left = [pin for pin in record.pins if pin not in blobs]
        if left != record.pins:
            changed[Digest.from_raw(key)] = msgspec.structs.replace(record, pins=left)
    catalog.put_members(txn, changed)


def expected_pins(recipes: Iterable[Recipe]) -> dict[Digest, list[Digest]]:
    """For each member of split blobs, which blobs pin it, sorted."""
    pins: dict[Digest, list[Digest]] = {}
    for recipe in recipes:
        for digest in recipe.sizes():
            pins.setdefault(digest, []).append(recipe.digest)
    return {digest: sorted(blobs) for digest, blobs in pins.items()}


def restore_pins(txn: Txn, layout: Layout, now_s: int) -> None:
    """Make pins and recipes agree; a blob whose recipe can not be read keeps the pins it has.

    Raises:
        RecordCorrupt: when a record of a blob or member does not verify.
    """
    split = {Digest.from_raw(key) for key, record in txn.iter(schema.BLOBS, BlobRecord) if record.form == "split"}
    recipes = {digest: recipe for digest in split if (recipe := find_recipe(layout, digest)) is not None}
    expected = expected_pins(recipes.values())
    unknown = split - recipes.keys()
    changed: dict[Digest, MemberRecord] = {}
    for key, record in txn.iter(schema.MEMBERS, MemberRecord):
        kept = [pin for pin in record.pins if pin in unknown]
        pins = sorted({*kept, *expected.get(Digest.from_raw(key), ())})
        if pins != record.pins:
            changed[Digest.from_raw(key)] = msgspec.structs.replace(record, pins=pins)
    catalog.put_members(txn, changed)
    for recipe in recipes.values():
        pin_members(txn, layout, recipe, now_s)
