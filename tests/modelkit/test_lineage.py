"""The way back through a ModelKit's ancestors, and its bound."""

import pytest

from kitfs.digest import Digest
from kitfs.modelkit.lineage import AncestryTooLong, iter_ancestry
from kitfs.oci.manifest import ANNOTATION_PARENT, Descriptor, encode_manifest
from kitfs.oci.mediatype import CONFIG_KITOPS
from kitfs.store.records import ManifestRecord
from kitfs.store.store import Store


def add_chain(store: Store, length: int) -> list[Digest]:
    """ModelKits without layers, each derived from the one before; their digests, newest first."""
    found: list[Digest] = []
    with store.lease("test") as lease:
        change = store.change(lease)

        def put(data: bytes) -> Digest:
            with store.ingest(lease) as ingest:
                ingest.write(data)
                digest = ingest.commit_blob()
            change.add_blob(digest, len(data), form="whole", media_type="", origin="here")
            return digest

        config = put(b'{"manifestVersion":"1.0.0"}')
        for _ in range(length):
            annotations = {ANNOTATION_PARENT: str(found[0])} if found else {}
            digest = put(encode_manifest(Descriptor(CONFIG_KITOPS, config, 27, {}), (), annotations))
            change.add_manifest(digest, ManifestRecord(config, []))
            found.insert(0, digest)
        change.commit()
    return found


def test_ancestry_ends_at_its_bound(store_home):
    """As many ModelKits as may be followed are given; one more is an error that names it, and one less none."""
    with Store.open(store_home) as store:
        digests = add_chain(store, 4)
        assert [one.digest for one in iter_ancestry(store, digests[0], limit=4)] == digests
        ancestry = iter_ancestry(store, digests[0], limit=3)
        assert [next(ancestry).digest for _ in range(3)] == digests[:3]
        with pytest.raises(AncestryTooLong) as caught:
            next(ancestry)
        assert caught.value.manifest == digests[3] and caught.value.limit == 3
