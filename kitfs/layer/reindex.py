"""A layer that the store has, indexed once more while its bytes go by.

Used where the index is made anew and where it is compared with what it should say. Whoever reads the bytes hashes
them; a body that is not what its media type says is watched to its end all the same, so that wrong bytes are reported
as that. One thread.
"""

from __future__ import annotations

from kitfs.digest import Digest
from kitfs.layer.decode import DecodeLimits
from kitfs.layer.errors import LayerMalformed
from kitfs.layer.indexer import LayerIndex, LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat


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
