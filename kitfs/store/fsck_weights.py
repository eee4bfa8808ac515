"""How bad damage is: whether anything else in the store has, or can give, what is damaged.

Used by the checks of ``fsck``. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.store.findings import Weight
from kitfs.store.recipe import find_recipe
from kitfs.store.records import MemberRecord
from kitfs.store.stamp import find_status

if TYPE_CHECKING:
    from kitfs.store.fsck import View


def weigh_content(view: View, blob: Digest) -> Weight:
    """How bad it is that a blob's bytes are wrong or gone: an image index is made anew of its layer."""
    records = view.manifests.values()
    if any(blob == record.config or blob in record.layers for record in records):
        return Weight.LOST
    return Weight.REPAIRABLE if any(blob in record.indexes for record in records) else Weight.LOST


def weigh_blob(view: View, blob: Digest) -> Weight:
    """How bad it is that a blob has no record: with its file, or a recipe that verifies, one can be made anew."""
    if find_status(view.layout.blob(blob)) is not None or find_recipe(view.layout, blob) is not None:
        return Weight.REPAIRABLE
    return weigh_content(view, blob)


def weigh_member(record: MemberRecord) -> Weight:
    """How bad it is that a member is damaged: nothing else has the bytes of one that split blobs need."""
    return Weight.LOST if record.pins else Weight.REPAIRABLE
