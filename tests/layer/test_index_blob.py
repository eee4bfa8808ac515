"""The image index of a layer that the store has is the one that indexing the layer would give."""

import pytest

from kitfs.digest import Digest
from kitfs.layer import checkpoints, index_blob
from kitfs.layer.image_index import encode_image_index, parse_image_index
from kitfs.layer.index_blob import add_image_index, get_layer_index, image_index_digest
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import LAYER_INDEX, Compression, LayerFormat
from kitfs.store import catalog
from kitfs.store.errors import BlobCorrupt, LayerNotIndexed

KINDS = [(layer_format, compression) for layer_format in LayerFormat for compression in Compression]


def store_index(store, found, **options):
    """Add a layer's image index, in a change of its own."""
    with store.lease("index") as lease:
        change = store.change(lease)
        digest = add_image_index(store, lease, change, found, **options)
        change.commit()
    return digest


@pytest.mark.parametrize(("layer_format", "compression"), KINDS)
def test_it_is_had_from_records(layers, tar_of, files, layer_format, compression):
    """From what the store recorded comes what indexing found, and the blob that is stored is its image index."""
    found = layers.add(tar_of(files), compression, layer_format)
    assert get_layer_index(layers.store, found.digest) == found
    digest = store_index(layers.store, found)
    assert digest == image_index_digest(found)
    assert layers.store.read_blob(digest) == encode_image_index(found)
    assert layers.store.get_blob(digest).media_types == [LAYER_INDEX]
    assert parse_image_index(layers.store.read_blob(digest)) == found


@pytest.mark.parametrize(("layer_format", "compression"), KINDS)
def test_records_of_an_older_kitfs_do_not_change_it(layers, tar_of, files, layer_format, compression):
    """A layer that was recorded without checkpoints or ranges is indexed again: the same image index."""
    raw = tar_of(files)
    expected = encode_image_index(layers.add(raw, compression, layer_format))
    layers.keeps_checkpoints = False
    found = layers.add(raw, compression, layer_format)
    assert layers.store.find_layer(found.digest).checkpoint_values == 0
    assert encode_image_index(get_layer_index(layers.store, found.digest)) == expected


def test_older_choices_of_where_to_decode_do_not_change_it(layers, tar_of, files):
    """Checkpoints of version 2 can be read, and are not what an image index is made of."""
    found = layers.add(tar_of(files), Compression.GZIP)
    older = [b"\2" + found.checkpoints[0][1:], *found.checkpoints[1:]]
    assert checkpoints.count_directory_values(older[0]) == 1
    with layers.store.index.write() as txn:
        catalog.put_layer(txn, found.digest, found.record, found.toc, found.span_checksums, older)
    with LayerReader(layers.store, found.digest) as reader:
        for number, member in enumerate(reader.toc):
            assert reader.open_member(number).read(0, member.size) == list(files.values())[number]
    assert get_layer_index(layers.store, found.digest) == found


def test_a_layer_whose_bytes_are_wrong_gives_none(layers, tar_of, files):
    """What has to be indexed again, and is not the digest's, is an error and no image index."""
    layers.keeps_checkpoints = False
    found = layers.add(tar_of(files), Compression.NONE)
    path = layers.blob_path(found.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BlobCorrupt):
        get_layer_index(layers.store, found.digest)
    with pytest.raises(LayerNotIndexed):
        get_layer_index(layers.store, Digest.of(b"other"))


def test_another_than_expected_is_not_stored(layers, tar_of, files):
    """When somebody else says what it should be and it is not, nothing of it stays."""
    found = layers.add(tar_of(files), Compression.NONE)
    before = list(layers.store.iter_blobs())
    assert store_index(layers.store, found, expected=Digest.of(b"other")) is None
    assert list(layers.store.iter_blobs()) == before
    assert store_index(layers.store, found, expected=image_index_digest(found)) == image_index_digest(found)


def test_one_that_nobody_could_read_is_not_stored(layers, tar_of, files, monkeypatch):
    """A layer whose image index would be larger than is parsed has none."""
    found = layers.add(tar_of(files), Compression.NONE)
    monkeypatch.setattr(index_blob, "SIZE_MAX", len(encode_image_index(found)) - 1)
    assert store_index(layers.store, found) is None
    assert image_index_digest(found) is None


def test_a_layer_has_one_index_whatever_was_done_with_it(layers, tar_of, files):
    """Neither reading members, which makes files of them, nor storing the layer again changes it."""
    raw = tar_of(files)
    found = layers.add(raw, Compression.ZSTD)
    with LayerReader(layers.store, found.digest) as reader:
        for number, member in enumerate(reader.toc):
            assert reader.open_member(number).read(0, member.size) == list(files.values())[number]
    assert get_layer_index(layers.store, found.digest) == found
    assert layers.add(raw, Compression.ZSTD) == found
