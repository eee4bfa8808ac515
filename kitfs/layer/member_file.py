"""A member of a compressed layer: its own file in the store, made when it is first read.

`reader` makes these. A file is served while its stamp held at the moment it was opened (design: trust by stamp); one
whose stamp differs is hashed once and stamped anew, or dropped and made anew from the layer. The member may have come
from any layer or ModelKit: it is found by its digest alone.
"""

from __future__ import annotations

import os
from typing import Literal

from kitfs.digest import Digest, Digester
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.materialise import Materialiser
from kitfs.store.errors import MemberNotFound
from kitfs.store.records import TocMember
from kitfs.store.store import Store

_ATTEMPTS = 6  # stamped anew, made, found lost while its layer is decoded, made anew: each once, and a look after
_PIECE_SIZE = 1 << 20


class MemberFileReader:
    """Reads one member; see `reader.MemberReader`.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, store: Store, materialiser: Materialiser, layer: Digest, member: TocMember, index: int) -> None:
        assert member.digest is not None  # files have one
        self.size = member.size
        self._store = store
        self._materialiser = materialiser
        self._layer = layer
        self._index = index
        self._offset = member.offset
        self._digest = Digest.from_raw(member.digest)
        self._descriptor = self._look()[0]

    @property
    def state(self) -> Literal["lazy", "partial", "native"]:
        """``native`` once the file is open, ``partial`` while the layer is decoded, else ``lazy``."""
        if self._descriptor is not None or self.size == 0:
            return "native"
        return "partial" if self._materialiser.is_running else "lazy"

    def read_ready(self, start: int, stop: int) -> bytes | memoryview | None:
        """The bytes ``[start, stop)`` when the member has its file and they are in the page cache, else None.

        Raises:
            ValueError: when the range is not within the file.
        """
        self._check(start, stop)
        if start == stop:
            return b""
        descriptor = self._descriptor
        data = None if descriptor is None else descriptor.read_cached(start, stop - start)
        return None if data is None else memoryview(data).toreadonly()

    def begin_read(self, start: int, stop: int) -> None:
        """Nothing: `read` has to wait for the disk."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes ``[start, stop)``; the first read may wait for the layer to be decoded up to this member.

        Raises:
            LayerCorrupt: when the layer does not give the member's bytes, or its file has become shorter.
            KitfsError, OSError: when the store or the disk fails.
            ValueError: when the range is not within the file.
        """
        self._check(start, stop)
        if start == stop:
            return b""
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = self._open()
        data = descriptor.read(start, stop - start)
        if len(data) != stop - start:
            self._descriptor = None
            raise self._corrupt(f"its member file ends at byte {start + len(data)}")
        return data

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) of a file of {self.size} bytes")

    def _look(self) -> tuple[Descriptor | None, bool]:
        """The member's file, when there is one whose stamp holds, and whether there is any; nothing is hashed."""
        try:
            fd, is_trusted = self._store.open_member(self._digest)
        except MemberNotFound:
            return None, False
        descriptor = Descriptor(fd)
        return (descriptor if is_trusted and os.fstat(fd).st_size == self.size else None), True

    def _open(self) -> Descriptor:
        """The member's file, hashed or made where it must be."""
        is_lost = False
        for _ in range(_ATTEMPTS):
            descriptor, is_there = self._look()
            if descriptor is not None:
                return descriptor
            if not is_there or not self._store.restamp_member(self._digest):
                self._materialiser.materialise(self._digest, is_lost=is_lost)
                is_lost = True
        return self._hash_open()

    def _hash_open(self) -> Descriptor:
        """The member's file, hashed through the descriptor that is then read: no stamp is needed.

        For a file whose status does not stand still: other processes that place the same member in turn, a backup
        that links it.
        """
        try:
            descriptor = Descriptor(self._store.open_member(self._digest)[0])
        except MemberNotFound:
            raise self._corrupt("its member file does not stay") from None
        digester = Digester()
        while piece := descriptor.read(digester.size, _PIECE_SIZE):
            digester.update(piece)
        if digester.digest() != self._digest:
            raise self._corrupt("its member file does not stay as it was verified")
        return descriptor

    def _corrupt(self, reason: str) -> LayerCorrupt:
        return LayerCorrupt(self._layer, member=self._index, span=None, offset=self._offset, reason=reason)
