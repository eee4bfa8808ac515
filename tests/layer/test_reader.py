"""Reading members: right bytes or an error, from plain layers and from compressed ones."""

import logging
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.layer.descriptor import Descriptor
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.reader import LayerReader, NotAFile
from kitfs.layer.spans import SPAN_SIZE
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.errors import BlobNotFound, LayerNotIndexed

NONE, GZIP, ZSTD = Compression.NONE, Compression.GZIP, Compression.ZSTD


def open_all(reader: LayerReader):
    return {member.path.decode(): reader.open_member(at) for at, member in enumerate(reader.toc)}


def rewrite(path, change) -> None:
    """Change a file of the store behind its back, in place."""
    raw = bytearray(path.read_bytes())
    change(raw)
    path.chmod(0o600)
    path.write_bytes(raw)


@pytest.mark.parametrize("compression", list(Compression))
def test_members_read_as_they_were_packed(layers, tar_of, files, compression):
    """Every file of a layer, whatever its compression, reads back whole, by both ways of reading."""
    index = layers.add(tar_of(files), compression)
    with LayerReader(layers.store, index.digest) as reader:
        for name, member in open_all(reader).items():
            assert member.size == len(files[name])
            assert bytes(member.read(0, member.size)) == files[name]
            ready = member.read_ready(0, member.size)
            assert ready is None or bytes(ready) == files[name]


@pytest.mark.parametrize("compression", list(Compression))
def test_any_range_reads_right(layers, tar_of, files, compression):
    """Any range within a file, across spans or empty, gives exactly its bytes."""
    index = layers.add(tar_of(files), compression)
    with LayerReader(layers.store, index.digest) as reader:
        members = open_all(reader)

        @given(st.sampled_from(sorted(files)), st.data())
        def check(name, data):
            size = len(files[name])
            near = st.integers(0, size) | st.sampled_from([min(at, size) for at in (SPAN_SIZE - 1, SPAN_SIZE, size)])
            start, stop = sorted((data.draw(near), data.draw(near)))
            assert bytes(members[name].read(start, stop)) == files[name][start:stop]
            ready = members[name].read_ready(start, stop)
            assert ready is None or bytes(ready) == files[name][start:stop]

        check()


@pytest.mark.parametrize("compression", list(Compression))
def test_a_range_outside_the_file_is_an_error(layers, tar_of, compression):
    """A range beyond the file, or backwards, is ValueError and not fewer bytes."""
    index = layers.add(tar_of({"f": b"12345"}), compression)
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        for start, stop in ((0, 6), (-1, 2), (3, 2), (6, 6)):
            for read in (member.read, member.read_ready):
                with pytest.raises(ValueError, match="range"):
                    read(start, stop)


@pytest.mark.parametrize("compression", list(Compression))
def test_a_raw_layer_reads_as_its_one_member(layers, compression):
    """The one member of a raw layer is the decoded layer itself."""
    data = random.Random(1).randbytes(300_000)
    index = layers.add(data, compression, LayerFormat.RAW)
    with LayerReader(layers.store, index.digest) as reader:
        assert bytes(reader.open_member(0).read(0, len(data))) == data
        assert reader.open_member(0).state == ("lazy" if compression is GZIP else "native")


def test_states_say_how_a_member_is_read(layers, tar_of, files):
    """Plain tar and gzip are lazy; a zstd member is until it is read, and native from then on; an empty one always."""
    plain = layers.add(tar_of(files), NONE)
    lazy = layers.add(tar_of(files), GZIP)
    packed = layers.add(tar_of(files), ZSTD)
    with LayerReader(layers.store, plain.digest) as reader:
        assert {member.state for member in open_all(reader).values() if member.size} == {"lazy"}
    with LayerReader(layers.store, lazy.digest) as reader:
        members = open_all(reader)
        assert [members["model/large"].read(0, 5), members["model/large"].state] == [files["model/large"][:5], "lazy"]
    with LayerReader(layers.store, packed.digest) as reader:
        members = open_all(reader)
        assert {name: member.state for name, member in members.items() if member.state != "lazy"} == {
            "model/empty": "native"
        }
        assert members["model/small"].read_ready(0, 5) is None
        members["model/small"].read(0, 5)
        assert members["model/small"].state == "native"
        assert members["model/large"].state in ("partial", "lazy")


def test_directories_and_unknown_layers_are_errors(layers, tmp_path):
    """Opening a directory, a member that is not there, or a layer that is not, has an error of its own."""
    import io
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("d")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    index = layers.add(raw.getvalue(), NONE)
    with LayerReader(layers.store, index.digest) as reader:
        with pytest.raises(NotAFile):
            reader.open_member(0)
        with pytest.raises(IndexError):
            reader.open_member(1)
    with pytest.raises(LayerNotIndexed):
        LayerReader(layers.store, Digest.of(b"nothing"))


def test_a_missing_blob_is_an_error_when_opened(layers, tar_of):
    """A plain layer whose blob is gone is BlobNotFound at open, not later."""
    index = layers.add(tar_of({"f": b"x"}), NONE)
    layers.blob_path(index.digest).unlink()
    with LayerReader(layers.store, index.digest) as reader, pytest.raises(BlobNotFound):
        reader.open_member(0)


@pytest.mark.parametrize("layer_format", list(LayerFormat))
def test_a_flipped_bit_of_a_plain_layer_is_never_served(layers, tar_of, files, layer_format):
    """400 single flips: each read gives the right bytes or LayerCorrupt; one inside the read span never passes."""
    raw = tar_of(files) if layer_format is LayerFormat.TAR else files["model/large"]
    index = layers.add(raw, NONE, layer_format)
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    rng = random.Random(9)
    caught = 0
    with LayerReader(layers.store, index.digest) as reader, open(path, "r+b") as blob:
        for _ in range(400):
            at, number = rng.randrange(len(raw)), rng.randrange(len(reader.toc))
            member = reader.toc[number]
            opened = reader.open_member(number)
            start = rng.randrange(member.size + 1)
            stop = rng.randrange(start, member.size + 1)
            blob.seek(at)
            blob.write(bytes((raw[at] ^ 1 << rng.randrange(8),)))
            blob.flush()
            expected = raw[member.offset + start : member.offset + stop]
            first, last = start // SPAN_SIZE * SPAN_SIZE, min(-(-stop // SPAN_SIZE) * SPAN_SIZE, member.size)
            is_hit = start < stop and first <= at - member.offset < last
            ready = opened.read_ready(start, stop)
            assert ready is None or (bytes(ready) == expected and not is_hit)
            if is_hit:
                caught += 1
                with pytest.raises(LayerCorrupt) as error:
                    opened.read(start, stop)
                assert (error.value.layer, error.value.member) == (index.digest, number)
                assert error.value.span == (at - member.offset) // SPAN_SIZE
                assert error.value.offset == member.offset + error.value.span * SPAN_SIZE
            else:
                assert bytes(opened.read(start, stop)) == expected
            blob.seek(at)
            blob.write(raw[at : at + 1])
            blob.flush()
    assert caught > 30


def test_a_mismatch_is_logged_once_per_span(layers, tar_of, files, caplog):
    """Ten reads of a rotten span make one log line, which names blob, span and offset."""
    index = layers.add(tar_of(files), NONE)
    number = next(at for at, member in enumerate(index.toc) if member.path == b"model/large")
    member = index.toc[number]
    rewrite(
        layers.blob_path(index.digest), lambda raw: raw.__setitem__(member.offset + 2 * SPAN_SIZE, 0xAA ^ raw[-1] ^ 1)
    )
    with LayerReader(layers.store, index.digest) as reader, caplog.at_level(logging.ERROR):
        opened = reader.open_member(number)
        for _ in range(10):
            with pytest.raises(LayerCorrupt, match="checksum differs"):
                opened.read(0, member.size)
    (record,) = caplog.records
    assert str(index.digest) in record.getMessage()
    assert "span 2" in record.getMessage()
    assert f"byte {member.offset + 2 * SPAN_SIZE}" in record.getMessage()


def test_a_truncated_blob_is_an_error_where_bytes_are_missing(layers, tar_of, files):
    """Spans before the cut read, spans behind it are LayerCorrupt, and no read is short."""
    index = layers.add(tar_of({"f": files["model/large"]}), NONE)
    os.chmod(layers.blob_path(index.digest), 0o600)
    os.truncate(layers.blob_path(index.digest), index.toc[0].offset + 3 * SPAN_SIZE + 10)
    with LayerReader(layers.store, index.digest) as reader:
        opened = reader.open_member(0)
        assert bytes(opened.read(0, 3 * SPAN_SIZE)) == files["model/large"][: 3 * SPAN_SIZE]
        with pytest.raises(LayerCorrupt, match="missing"):
            opened.read(3 * SPAN_SIZE, 3 * SPAN_SIZE + 5)
        assert opened.read_ready(3 * SPAN_SIZE, 3 * SPAN_SIZE + 5) is None


def test_importing_again_heals_an_open_reader(layers, tar_of, files):
    """After a rotten blob was replaced by an import, a member that was open all the time reads right."""
    raw = tar_of(files)
    index = layers.add(raw, NONE)
    with LayerReader(layers.store, index.digest) as reader:
        members = open_all(reader)
        rewrite(layers.blob_path(index.digest), lambda blob: blob.__setitem__(slice(0, len(blob)), bytes(len(blob))))
        with pytest.raises(LayerCorrupt):
            members["model/large"].read(0, 10)
        layers.add(raw, NONE)
        assert bytes(members["model/large"].read(0, 10)) == files["model/large"][:10]


def test_descriptors_close_with_their_last_user(layers, tar_of, files):
    """Readers and open members hold at most one descriptor each, and none when they are gone."""
    before = set(os.listdir("/proc/self/fd"))
    for compression in Compression:
        index = layers.add(tar_of(files), compression)
        with LayerReader(layers.store, index.digest) as reader:
            members = open_all(reader)
            for member in members.values():
                member.read(0, member.size)
            limit = 1 if compression is NONE else len(files)
            assert len(set(os.listdir("/proc/self/fd")) - before) <= limit + 1  # and the listing's own
        del members, member, reader
        assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_reading_never_waits_where_the_file_can_not_say(tmp_path):
    """A file system without RWF_NOWAIT, and a range that is not cached whole, give None and not an error."""
    assert Descriptor(os.open("/proc/self/maps", os.O_RDONLY)).read_cached(0, 100) is None
    (tmp_path / "f").write_bytes(b"12345")
    descriptor = Descriptor(os.open(tmp_path / "f", os.O_RDONLY))
    assert descriptor.read_cached(0, 5) in (None, b"12345")
    assert descriptor.read_cached(3, 5) is None
    assert descriptor.read(3, 5) == b"45"


@pytest.mark.parametrize("is_cached", [True, False])
def test_bytes_read_once_are_those_of_the_file(tmp_path, is_cached):
    """Any range, cached or read past the page cache, up to the end and beyond it, is the file's."""
    data = random.Random(3).randbytes(3_000_001)
    path = tmp_path / "blob"
    path.write_bytes(data)
    descriptor = Descriptor(os.open(path, os.O_RDONLY))
    os.fsync(descriptor.fd)
    rng = random.Random(4)
    for start in [0, 1, 4095, 4096, len(data) - 1, len(data), *(rng.randrange(len(data)) for _ in range(40))]:
        for size in (0, 1, 4096, 500_000, 2_000_000):
            if not is_cached:
                os.posix_fadvise(descriptor.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert bytes(descriptor.read_once(start, size)) == data[start : start + size]
