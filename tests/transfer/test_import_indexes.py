"""Importing ModelKits whose descriptors name image indexes: made of the layers, whatever else the source has."""

import json

import pytest

from kitfs.digest import Digest
from kitfs.layer.image_index import encode_image_index
from kitfs.layer.indexer import LayerIndexer
from kitfs.layer.reader import LayerReader
from kitfs.oci.manifest import ANNOTATION_INDEX
from kitfs.oci.mediatype import LAYER_INDEX, parse_layer_type
from kitfs.store.gc import gc

MODEL = "application/vnd.kitops.modelkit.model.v1.tar"
FILES = {"weights": bytes(range(256)) * 5000, "config.json": b"{}"}


def index_of(media_type: str, raw: bytes) -> bytes:
    """The image index of a layer."""
    kind = parse_layer_type(media_type)
    indexer = LayerIndexer(kind.format, kind.compression)
    indexer.feed(raw)
    return encode_image_index(indexer.finish())


def naming(*indexes: str):
    """Changes a manifest so that its layers name image indexes."""

    def change(manifest: dict) -> None:
        for layer, index in zip(manifest["layers"], indexes, strict=True):
            layer["annotations"] = {ANNOTATION_INDEX: index}

    return change


@pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("copy", [True, False])
def test_an_index_that_is_not_in_the_source_is_made(bring, store, layout, make_tar, packers, suffix, copy):
    """The image index that a descriptor names is made of the layer and stored under that very digest."""
    raw = packers[suffix](make_tar(FILES))
    expected = index_of(MODEL + suffix, raw)
    kit = layout.kit("1", [(MODEL + suffix, raw)], change=naming(str(Digest.of(expected))))
    report = bring(layout.path, copy=copy)
    assert report.warnings == []
    assert store.get_manifest(kit).indexes == [Digest.of(expected)]
    assert store.read_blob(Digest.of(expected)) == expected
    record = store.get_blob(Digest.of(expected))
    assert (record.media_types, record.origin) == ([LAYER_INDEX], "layout")


def test_it_is_made_of_a_layer_that_is_there(bring, store, layout, make_tar, packers):
    """A layer that the store has is not read again, and its image index is that of the layer all the same."""
    raw = packers["+gzip"](make_tar(FILES))
    expected = index_of(MODEL + "+gzip", raw)
    plain = layout.kit("plain", [(MODEL + "+gzip", raw)])
    bring(layout.path)
    assert store.get_manifest(plain).indexes == []
    kit = layout.kit("1", [(MODEL + "+gzip", raw)], change=naming(str(Digest.of(expected))))
    report = bring(layout.path)
    assert report.counts.copied + report.counts.linked == 1  # the manifest
    assert store.get_manifest(kit).indexes == [Digest.of(expected)]
    bring(layout.path)
    assert store.get_manifest(kit).indexes == [Digest.of(expected)]
    gc(store)
    assert store.read_blob(Digest.of(expected)) == expected


@pytest.mark.parametrize("named", ["another layer's", "nonsense", "no digest", ""])
def test_another_index_is_a_warning(bring, store, layout, make_tar, packers, named):
    """When a descriptor names another, one warning names the layer, nothing is stored, and the kit can be read."""
    raw, other = packers["+gzip"](make_tar(FILES)), make_tar({"x": b"y"})
    forged = index_of(MODEL, other)
    text = {"another layer's": str(Digest.of(forged)), "nonsense": str(Digest.of(b"nonsense"))}.get(named, named)
    layout.blob(forged)  # it is there, and is not believed
    kit = layout.kit("1", [(MODEL + "+gzip", raw)], change=naming(text))
    report = bring(layout.path)
    assert len(report.warnings) == 1
    assert str(Digest.of(raw)) in report.warnings[0] and "image index" in report.warnings[0]
    assert store.get_manifest(kit).indexes == []
    assert store.find_blob(Digest.of(forged)) is None
    with LayerReader(store, Digest.of(raw)) as reader:
        assert reader.open_member(0).read(0, 1000) == FILES["weights"][:1000]


def test_each_layer_is_looked_at(bring, store, layout, make_tar):
    """Of two layers one of which names a wrong image index, the other has its own; an unknown layer has none."""
    one, two = make_tar({"one": b"1"}), make_tar({"two": b"2"})
    right = index_of(MODEL, two)
    layers = [(MODEL, one), (MODEL, two), ("application/x-unknown", b"who knows")]
    kit = layout.kit("1", layers, change=naming(str(Digest.of(b"wrong")), str(Digest.of(right)), str(Digest.of(right))))
    report = bring(layout.path)
    assert [text.split(" (")[0].rpartition(" ")[2] for text in report.warnings if "image index" in text] == ["1", "3"]
    assert store.get_manifest(kit).indexes == [Digest.of(right)]
    assert len(json.dumps(report.warnings)) < 1000
