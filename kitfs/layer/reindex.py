"""A layer that the store has, indexed once more while its bytes go by.

Used where the index is made anew and where it is compared with what it should say. Whoever reads the bytes hashes
them; a body that is not what its media type says is watched to its end all the same, so that wrong bytes are reported
as that. One thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import msgspec

from kitfs.digest import CHECKSUM_SIZE, Digest
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.layer.spans import first_spans
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.recipe import Recipe
from kitfs.store.stored import Reading


class LayerWatcher:
    """Indexes the bytes that it is shown as one kind of layer."""

    def __init__(self, layer_format: LayerFormat, compression: Compression) -> None:
        # What an import admitted is admitted again, whatever `--expansion-max` was then.
        limits = DecodeLimits(free_size=DecodeLimits().decoded_size)
        self._indexer = LayerIndexer(layer_format, compression, limits=limits, hashes_blob=False)
        self._failure: LayerMalformed | None = None

    def watch(self, data: memoryview) -> None:
        """The next published bytes; they may be overwritten once this returns."""
        if self._failure is None:
            try:
                self._indexer.feed(data)
            except LayerMalformed as error:
                self._failure = error

    def finish(self, digest: Digest) -> LayerIndex:
        """What was found, once all bytes of the layer have passed.

        Raises:
            LayerMalformed: when the layer is not what its kind says.
        """
        try:
            if self._failure is not None:
                raise self._failure
            return self._indexer.finish(digest)
        except LayerMalformed as error:
            raise LayerMalformed(digest, error.offset, error.reason) from error


def find_wrong_members(found: LayerIndex, recipe: Recipe, reading: Reading) -> dict[int, Digest]:
    """The members of a split layer whose files do not hold what its recipe says: offset to digest.

    Args:
        found: What watching its bytes told.
        recipe: Its recipe.
        reading: What reading it told.
    """
    read = {member.offset: member.digest for member in found.toc if member.size}
    return {
        member.offset: member.digest
        for member in recipe.members
        if member.digest not in reading.members or read.get(member.offset) != member.digest.raw
    }


def name_wrong_members(found: LayerIndex, wrong: Collection[int]) -> list[bytes]:
    """The paths of members at some offsets."""
    return [member.path for member in found.toc if member.size and member.offset in wrong]


def without_wrong_members(found: LayerIndex, wrong: dict[int, Digest]) -> LayerIndex:
    """What a split layer holds, told by its recipe where files hold other bytes: those match no checksum.

    Their checksums are zeros, so that no byte of them is served by spans; names, sizes and places are the recipe's.
    """
    firsts = first_spans(found.toc)
    checksums = bytearray(found.span_checksums)
    toc = list(found.toc)
    for number, member in enumerate(toc):
        if member.size and member.offset in wrong:
            toc[number] = msgspec.structs.replace(member, digest=wrong[member.offset].raw)
            start, stop = firsts[number] * CHECKSUM_SIZE, firsts[number + 1] * CHECKSUM_SIZE
            checksums[start:stop] = bytes(stop - start)
    return dataclasses.replace(found, toc=toc, span_checksums=bytes(checksums))
