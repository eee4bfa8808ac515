"""A layer's table of contents, read batch by batch as members are looked at.

``Store.open_toc`` makes one; ``kitfs.layer`` reads with it, so that opening one file of a million does not cost
reading the other records. Any thread may use one. Iterating reads each batch once and keeps none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from kitfs.store.records import TocMember
from kitfs.store.schema import TOC_BATCH

_BATCHES_MAX = 16
"""Batches kept: 4 MiB."""


class Toc(Sequence[TocMember]):
    """The members of a layer, in tar order."""

    def __init__(self, count: int, load: Callable[[int], list[TocMember]]) -> None:
        """Nothing is read yet.

        Args:
            count: Members in all.
            load: Gives the batch of a number.
        """
        self._count = count
        self._load = load
        self._lock = threading.Lock()
        self._batches: OrderedDict[int, list[TocMember]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> TocMember:  # type: ignore[override]  # slices would read any number of batches
        """The member at a place.

        Raises:
            IndexError: when there is none.
            RecordCorrupt, IndexFailed, IndexCorrupt: when the index can not tell.
        """
        if not -self._count <= index < self._count:
            raise IndexError(index)
        sequence, place = divmod(index % self._count, TOC_BATCH)
        with self._lock:
            batch = self._batches.get(sequence)
            if batch is not None:
                self._batches.move_to_end(sequence)
                return batch[place]
        batch = self._load(sequence)
        with self._lock:
            self._batches[sequence] = batch
            if len(self._batches) > _BATCHES_MAX:
                self._batches.popitem(last=False)
        return batch[place]

    def __iter__(self) -> Iterator[TocMember]:
        for sequence in range(-(-self._count // TOC_BATCH)):
            yield from self._load(sequence)
