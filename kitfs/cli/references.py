"""References on the command line: what they mean in the store, and kit's words when they mean nothing there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitfs.errors import NotFoundError

if TYPE_CHECKING:
    from kitfs.digest import Digest
    from kitfs.oci.reference import Reference
    from kitfs.store.store import Store


class ReferenceNotFound(NotFoundError):
    """A reference that the store does not hold."""

    hint = "kitfs list shows what is there, kitfs import brings more in"

    def __init__(self, reference: Reference, failed: str = "") -> None:
        name = reference.display
        super().__init__(f"{failed}: model {name} not found" if failed else f"could not find modelkit {name}")
        self.reference = reference


def get_digest(store: Store, reference: Reference, *, failed: str = "") -> Digest:
    """The ModelKitID that a reference means in the store now.

    Args:
        store: The store.
        reference: What was asked for.
        failed: What has failed when it is not there, as ``failed to tag modelkit``; empty for a verb that only looks.

    Raises:
        ReferenceNotFound: when it is not there.
    """
    from kitfs.transfer.parents import find_digest

    digest = find_digest(store, reference)
    if digest is None:
        raise ReferenceNotFound(reference, failed)
    return digest
