"""A store on disk, and ModelKits to put into it. Each test ends with a check, unless it damages the store."""

import json

import pytest

from kitfs.digest import Digest
from kitfs.store.fsck import check
from kitfs.store.records import LayerRecord, ManifestRecord, TocMember
from kitfs.store.store import Store

CONFIG_TYPE = "application/vnd.kitops.modelkit.config.v1+json"
LAYER_TYPE = "application/vnd.kitops.modelkit.model.v1.raw"


class Builder:
    """Puts things into a store."""

    def __init__(self, store: Store):
        self.store = store

    def put(self, lease, data, *, member=False):
        """Bytes in place under their digest."""
        with self.store.ingest(lease) as ingest:
            ingest.write(data)
            return ingest.commit_member() if member else ingest.commit_blob()

    def add_blob(self, lease, change, data, media_type):
        digest = self.put(lease, data)
        change.add_blob(digest, len(data), media_type=media_type)
        return digest, {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    def add_kit(self, lease, change, name, layers=(b"layer",)):
        """A ModelKit with a manifest that can be parsed; its digest."""
        config, config_entry = self.add_blob(lease, change, json.dumps({"name": name}).encode(), CONFIG_TYPE)
        digests, entries = [], []
        for data in layers:
            digest, entry = self.add_blob(lease, change, data, LAYER_TYPE)
            toc = [TocMember(b"", 0, 0o644, len(data), 0, Digest.of(data).raw)]
            change.add_layer(digest, LayerRecord(digest, "raw", "none", 1, len(data), len(data)), toc, b"c" * 16)
            digests.append(digest)
            entries.append(entry)
        raw = json.dumps({"schemaVersion": 2, "config": config_entry, "layers": entries}).encode()
        manifest, _ = self.add_blob(lease, change, raw, "application/vnd.oci.image.manifest.v1+json")
        change.add_manifest(manifest, ManifestRecord(config, digests))
        return manifest

    def kit(self, name="kit", layers=(b"layer",), *, tags=(("localhost/myllm", "1"),)):
        """A ModelKit, recorded and tagged; its digest."""
        with self.store.lease("kit") as lease:
            change = self.store.change(lease)
            manifest = self.add_kit(lease, change, name, layers)
            for repository, tag in tags:
                change.set_tag(repository, tag, manifest)
            change.commit()
        return manifest

    def member(self, data):
        """A materialised member, recorded; its digest."""
        with self.store.lease("member") as lease:
            digest = self.put(lease, data, member=True)
            change = self.store.change(lease)
            change.add_member(digest, len(data))
            change.commit()
        return digest


@pytest.fixture
def store(store_home):
    """A fresh store; checked when the test is over."""
    with Store.open(store_home) as store:
        yield store
        assert not check(store, read_data=True).problems


@pytest.fixture
def build(store):
    """Puts ModelKits into ``store``."""
    return Builder(store)


@pytest.fixture
def damaged(store_home):
    """A fresh store that the test may damage."""
    with Store.open(store_home) as store:
        yield store


@pytest.fixture
def build_damaged(damaged):
    """Puts ModelKits into ``damaged``."""
    return Builder(damaged)


@pytest.fixture
def build_store():
    """The builder itself, for stores that a test opens."""
    return Builder
