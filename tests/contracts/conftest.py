"""The two stores that every test of this folder runs against."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import LayerRecord, ManifestRecord, TocMember
from kitfs.store.store import Store

_SPEC = importlib.util.spec_from_file_location("memory_store", Path(__file__).with_name("memory_store.py"))
memory_store = importlib.util.module_from_spec(_SPEC)
sys.modules["memory_store"] = memory_store
_SPEC.loader.exec_module(memory_store)


class Subject:
    """A store, and what differs between the two: garbage collection, reopening, and the check at the end."""

    def __init__(self, home: Path | None):
        self.home = home
        self.store = memory_store.MemoryStore() if home is None else Store.open(home)

    def gc(self):
        self.store.gc() if self.home is None else gc(self.store)

    def reopen(self):
        if self.home is not None:
            self.store.close()
            self.store = Store.open(self.home)

    def close(self):
        """Every test ends with a check: nothing to repair, nothing lost."""
        if self.home is not None:
            problems = check(self.store, read_data=True).problems
            self.store.close()
            assert not problems

    def put(self, lease, data, *, member=False):
        """Bytes in place under their digest."""
        with self.store.ingest(lease) as ingest:
            ingest.write(data)
            return ingest.commit_member() if member else ingest.commit_blob()

    def add_kit(self, lease, change, name, layers=(b"layer",), parents=()):
        """A ModelKit of small raw layers, recorded by ``change``; its digest."""
        config = self.put(lease, json.dumps({"name": name}).encode())
        change.add_blob(config, self._size(config), media_type="config")
        digests = []
        for data in layers:
            digest = self.put(lease, data)
            change.add_blob(digest, len(data), media_type="layer")
            toc = [TocMember(b"", 0, 0o644, len(data), 0, Digest.of(data).raw)]
            change.add_layer(digest, LayerRecord(digest, "raw", "none", 1, len(data), len(data)), toc, b"c" * 16)
            digests.append(digest)
        manifest = self.put(lease, json.dumps({"config": str(config), "layers": [str(d) for d in digests]}).encode())
        change.add_blob(manifest, self._size(manifest), media_type="manifest")
        change.add_manifest(manifest, ManifestRecord(config, digests, list(parents)))
        return manifest

    def _size(self, digest):
        return len(self.store.read_blob(digest))


@pytest.fixture
def make_subject(tmp_path):
    """Makes subjects by kind, each with a place of its own; all are checked and closed at the end."""
    made = []

    def make(kind):
        subject = Subject(tmp_path / f"home{len(made)}" if kind == "disk" else None)
        made.append(subject)
        return subject

    yield make
    for subject in made:
        subject.close()


@pytest.fixture(params=["disk", "memory"])
def subject(request, make_subject):
    """One of the two stores."""
    return make_subject(request.param)


@pytest.fixture
def subject_type():
    """The class itself, for who makes many."""
    return Subject
