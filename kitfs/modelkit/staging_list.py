"""What staging directories a store has, for people: those that are there, mounted, missing or broken.

Used by ``kitfs staging``. Reads registrations and records, looks at the sizes of what was changed, changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kitfs.errors import KitfsError
from kitfs.modelkit.staging import find_mountpoint, measure_upper, open_staging
from kitfs.store.staging import iter_registrations

if TYPE_CHECKING:
    from kitfs.store.layout import Layout
    from kitfs.store.staging import Registration


class Listed(NamedTuple):
    """One staging directory.

    Attributes:
        name: Its name in ``staging/`` of the store.
        path: Where it lies.
        reference: What it was made over.
        parent: ``sha256:…`` of that.
        mountpoint: Where it is mounted, or None.
        size: Bytes on disk of what was changed, or None.
        problem: Why it can not be mounted, or empty.
    """

    name: str
    path: Path
    reference: str
    parent: str
    mountpoint: str | None
    size: int | None
    problem: str


def list_staging(layout: Layout) -> list[Listed]:
    """All staging directories that the store keeps ModelKits for, by name.

    Raises:
        OSError: when the folder can not be listed.
        StoreWriteFailed: when it can not be found out whether one is mounted.
    """
    return [_look(path.with_suffix(""), registration) for path, registration in iter_registrations(layout)]


def _look(place: Path, registration: Registration | None) -> Listed:
    name = place.name
    if registration is None:
        return Listed(name, Path(os.path.realpath(place)), "", "", None, None, "its registration can not be read")
    path = Path(registration.path)
    try:
        staging = open_staging(path)
    except KitfsError as error:
        reason = str(error) if path.exists() else "it is not there"
        return Listed(name, path, registration.reference, registration.manifests[0], None, None, reason)
    record = staging.record
    return Listed(
        name, path, record.reference, record.manifests[0], find_mountpoint(staging), measure_upper(staging), ""
    )
