"""Do the partials hold what their maps say? Asked by ``kitfs fsck --read-data``.

The store can not tell: a partial is compared span by span with the layer's checksums. A span that lies across an end of
the member is decoded for that. Readers compare what they take from a partial anyway, and a member is hashed before it
becomes a file, so a wrong one costs time and no byte. Changes nothing unless it is told to repair; any process may use
the partials meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.lazy_layer import LazyLayer
from kitfs.store import partials
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.findings import Finding, FsckReport, Weight
from kitfs.store.records import KIND_FILE, TocMember

if TYPE_CHECKING:
    from kitfs.store.store import Store

_DAMAGE = "wrong-partial"


@dataclass(slots=True)
class _WrongPartial:
    path: Path
    reason: str
    spans: list[int]  # numbers in its map; empty when it can not be used at all


def check_partials(store: Store, report: FsckReport, *, repair: bool = False) -> None:
    """Add what is wrong with the partials of this boot to a report.

    Args:
        store: The store.
        report: What the check of the store found.
        repair: Have wrong spans decoded again, and drop what is no partial and that nobody uses.

    Raises:
        IndexFailed, IndexCorrupt: when the index fails.
        StoreWriteFailed: when a repair fails.
    """
    for wrong in _iter_wrong(store, report):
        finding = Finding(_DAMAGE, f"{wrong.path.parent.name}/{wrong.path.name}", wrong.reason, Weight.REPAIRABLE)
        is_repaired = repair and _repair(wrong)
        (report.repaired if is_repaired else report.findings).append(finding)


def _iter_wrong(store: Store, report: FsckReport) -> Iterator[_WrongPartial]:
    layers: dict[str, LazyLayer | None] = {}
    try:
        for path in partials.iter_partials(store.layout):
            if path.parent.name == partials.boot_id():  # nobody believes those of other boots
                with contextlib.suppress(FileNotFoundError):  # it became a member meanwhile
                    wrong = _find_wrong(store, path, layers, report)
                    if wrong is not None:
                        yield wrong
    finally:
        for layer in layers.values():
            if layer is not None:
                layer.close()


def _find_wrong(
    store: Store, path: Path, layers: dict[str, LazyLayer | None], report: FsckReport
) -> _WrongPartial | None:
    name, _, index = path.name.partition(".")
    try:
        digest = Digest(name)
        toc = store.get_toc(digest)
        member = toc[int(index)]
        if name not in layers:
            record = store.find_layer(digest)
            layers[name] = LazyLayer(store, digest, record, toc) if record and record.checkpoint_values else None
    except (KitfsError, ValueError, IndexError):
        return _WrongPartial(path, "it belongs to no layer that can be read", [])
    layer = layers[name]
    if layer is None or member.kind != KIND_FILE or not member.size:
        return _WrongPartial(path, "it belongs to no member that is read by spans", [])
    return _compare(path, layer, member, report)


def _compare(path: Path, layer: LazyLayer, member: TocMember, report: FsckReport) -> _WrongPartial | None:
    first, last = layer.find_span(member.offset), layer.find_span(member.offset + member.size - 1)
    written = partials.map_of(path).read_bytes()
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if not size and not written:
            return None  # somebody is making it just now
        if size != member.size or len(written) != last - first + 1:
            return _WrongPartial(path, f"it has {size} bytes and {len(written)} spans", [])
        spans = []
        for number, byte in enumerate(written):
            if byte > 1 or (byte and not _is_right(file.fileno(), layer, member, first + number, report)):
                spans.append(number)
    if not spans:
        return None
    return _WrongPartial(path, f"{len(spans)} of its {len(written)} spans are not what was written", spans)


def _is_right(fd: int, layer: LazyLayer, member: TocMember, span: int, report: FsckReport) -> bool:
    start, stop = layer.range(span)
    begin, end = max(start, member.offset), min(stop, member.offset + member.size)
    data = os.pread(fd, end - begin, begin - member.offset)
    report.size_read += len(data)
    if (begin, end) == (start, stop):
        return layer.is_right(span, data)
    try:
        return layer.decode(span)[begin - start : end - start] == data
    except KitfsError:
        return True  # the blob is wrong there, which is named; this may be the last right copy of these bytes


def _repair(wrong: _WrongPartial) -> bool:
    """Whether it was repaired: a span whose byte in the map is 0 is decoded again, whoever uses the partial."""
    if not wrong.spans:
        return partials.remove_unused(wrong.path)
    path = partials.map_of(wrong.path)
    try:
        with open(path, "r+b", buffering=0) as file:
            for number in wrong.spans:
                os.pwrite(file.fileno(), b"\0", number)
    except FileNotFoundError:
        return True  # it was dropped meanwhile
    except OSError as error:
        raise StoreWriteFailed(path, "writing", error.strerror or str(error)) from error
    return True
