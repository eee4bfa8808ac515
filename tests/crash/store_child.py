"""What the crash tests of the store kill: a process that stores ModelKits, moves and removes tags, collects, evicts.

``store_child.py VERB HOME``. Prints ``done STEP`` when a step was acknowledged. Exit code 10 and one line on a
``KitfsError``; a traceback would be a bug.
"""

import contextlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.indexer import LayerIndexer
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.gc import gc
from kitfs.store.quota import Quota
from kitfs.store.records import LayerRecord, ManifestRecord, TocMember
from kitfs.store.store import Store

CONFIG_TYPE = "application/vnd.kitops.modelkit.config.v1+json"
TAR_TYPE = "application/vnd.kitops.modelkit.model.v1.tar"
LAYER_TYPE = "application/vnd.kitops.modelkit.model.v1.raw"
REPOSITORY = "localhost/myllm"


def acknowledge(step):
    with contextlib.suppress(OSError):
        os.write(1, f"done {step}\n".encode())


def add_blob(store, lease, change, data, media_type):
    with store.ingest(lease) as ingest:
        ingest.write(data)
        digest = ingest.commit_blob(Digest.of(data), len(data))
    change.add_blob(digest, len(data), media_type=media_type)
    return {"mediaType": media_type, "digest": str(digest), "size": len(data)}


def add_kit(store, lease, change, name, source=None):
    config = add_blob(store, lease, change, json.dumps({"name": name}).encode(), CONFIG_TYPE)
    layers = [add_blob(store, lease, change, f"{name} {number}".encode() * 1000, LAYER_TYPE) for number in range(2)]
    if source is not None:
        digest = Digest.of(source.read_bytes())
        store.link_blob(lease, source, digest)
        change.add_blob(digest, source.stat().st_size, media_type=LAYER_TYPE)
        layers.append({"mediaType": LAYER_TYPE, "digest": str(digest), "size": source.stat().st_size})
    for layer in layers:
        digest, size = Digest.parse(layer["digest"]), layer["size"]
        toc = [TocMember(b"", 0, 0o644, size, 0, digest.raw)]
        change.add_layer(digest, LayerRecord(digest, "raw", "none", 1, size, size), toc, bytes(16))
    raw = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
    manifest = Digest.parse(add_blob(store, lease, change, raw, "application/vnd.oci.image.manifest.v1+json")["digest"])
    digests = [Digest.parse(layer["digest"]) for layer in layers]
    change.add_manifest(manifest, ManifestRecord(Digest.parse(config["digest"]), digests))
    return manifest


def prepare(store, source):
    """The state before: tags ``kept``, ``moved`` and ``removed`` on an old kit, and an untagged one."""
    with store.lease("prepare") as lease:
        change = store.change(lease)
        old = add_kit(store, lease, change, "old")
        add_kit(store, lease, change, "untagged")
        for tag in ("kept", "moved", "removed"):
            change.set_tag(REPOSITORY, tag, old)
        change.commit()
    source.write_bytes(b"kit's own file" * 500)


def work(store, source):
    """Steps, each acknowledged: a new kit with a linked layer under two tags, a member, a tag removed."""
    with store.lease("work") as lease:
        change = store.change(lease)
        new = add_kit(store, lease, change, "new", source)
        change.set_tag(REPOSITORY, "new", new)
        change.set_tag(REPOSITORY, "moved", new)
        change.commit()
        acknowledge("kit")
        with store.ingest(lease) as ingest:
            ingest.write(b"new 0" * 1000)
            member = ingest.commit_member()
        change = store.change(lease)
        change.add_member(member, 5000)
        change.commit()
        acknowledge("member")
        if store.find_tag(REPOSITORY, "removed"):
            change = store.change(lease)
            change.remove_tag(REPOSITORY, "removed")
            change.commit()
        acknowledge("removed")


def work_split(store):
    """One step: a kit whose only layer is split, under the tag ``split``."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"model/{number}")
            info.size = 70_000
            tar.addfile(info, io.BytesIO(bytes((number,)) * info.size))
    raw = archive.getvalue()
    with store.lease("split") as lease:
        change = store.change(lease)
        with store.split_ingest(lease) as ingest:
            indexer = LayerIndexer(LayerFormat.TAR, Compression.NONE)
            indexer.feed(raw)
            ingest.write(raw)
            index = indexer.finish()
            digest = ingest.commit(index.toc, index.digest, len(raw))
        change.add_blob(digest, len(raw), media_type=TAR_TYPE)
        change.add_layer(digest, index.record, index.toc, index.span_checksums)
        config = add_blob(store, lease, change, b'{"name":"split"}', CONFIG_TYPE)
        layer = {"mediaType": TAR_TYPE, "digest": str(digest), "size": len(raw)}
        manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
        kit = Digest.parse(
            add_blob(store, lease, change, manifest, "application/vnd.oci.image.manifest.v1+json")["digest"]
        )
        change.add_manifest(kit, ManifestRecord(Digest.parse(config["digest"]), [digest]))
        change.set_tag(REPOSITORY, "split", kit)
        change.commit()
    acknowledge("split")


def main():
    verb, home = sys.argv[1], Path(sys.argv[2])
    source = home.with_name(home.name + "-source")
    try:
        with Store.open(home) as store:
            if verb == "prepare":
                prepare(store, source)
            elif verb == "work":
                work(store, source)
            elif verb == "split":
                work_split(store)
            elif verb == "gc":
                gc(store)
                acknowledge("gc")
            elif verb == "evict":
                store.quota = Quota(size=1000)
                acknowledge(f"evict {store.make_room(1000)}")
    except KitfsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(10)


main()
