"""Gzip layers read span by span: right bytes or an error, little decoded, each span once."""

import logging
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.errors import IntegrityError
from kitfs.layer import lazy_layer
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_pool import shared_pool
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store import schema
from kitfs.store.errors import BlobNotFound
from kitfs.store.store import Store

GZIP = Compression.GZIP
MIB = 1 << 20
SIX_BITS = bytes(value & 0x3F for value in range(256))


def compressible(rng: random.Random, size: int) -> bytes:
    """Bytes that gzip makes smaller by a quarter, in blocks of 16 KB, with some matches."""
    data = rng.randbytes(size).translate(SIX_BITS)
    return b"".join(data[at : at + 900] + data[at : at + 100] for at in range(0, size, 1000))[:size]


@pytest.fixture(scope="module")
def shards() -> dict[str, bytes]:
    """40 files of 100 KB to 2 MB."""
    rng = random.Random(11)
    return {f"model/{number:02}": compressible(rng, rng.choice([100, 300, 800, 2000]) * 1000) for number in range(40)}


@pytest.fixture
def small_spans(layers):
    """Layers of this store have a checkpoint every 20 KB."""
    layers.spacing = 20_000
    return layers


def spans_of(layers, index) -> LayerReader:
    """A reader that makes no files, so that what is read was decoded."""
    return LayerReader(layers.store, index.digest, materialise=Materialise.NEVER)


def decoded() -> int:
    return shared_pool().decoded_count


def read_all(reader: LayerReader) -> dict[str, bytes]:
    members = [reader.open_member(number) for number in range(len(reader.toc))]
    paths = [member.path.decode() for member in reader.toc]
    return {path: bytes(member.read(0, member.size)) for path, member in zip(paths, members, strict=True)}


def test_random_ranges_equal_the_files(layers, tar_of, shards):
    """Any range of any member, by every way of reading, gives its bytes; nothing is written to the store."""
    index = layers.add(tar_of(shards), GZIP)
    names = [member.path.decode() for member in index.toc]
    rng = random.Random(4)
    with spans_of(layers, index) as reader:
        for _ in range(400):
            number = rng.randrange(len(names))
            data = shards[names[number]]
            member = reader.open_member(number)
            start = rng.randrange(len(data) + 1)
            stop = min(start + rng.choice([0, 1, 4096, 131_072, MIB, 3 * MIB]), len(data))
            ready = member.read_ready(start, stop)
            assert ready is None or bytes(ready) == data[start:stop]
            pending = member.begin_read(start, stop)
            assert bytes(member.read(start, stop)) == bytes(pending.result()) == data[start:stop]
            assert member.state == "lazy"
        assert read_all(reader) == shards
    assert list(layers.store.layout.content("members").glob("*/*")) == []


def test_a_cold_read_decodes_at_most_two_spans(layers, tar_of, shards):
    """4 KiB anywhere costs one span, or two where it lies across; of 40 members only the one read is decoded."""
    index = layers.add(tar_of(shards), GZIP)
    rng = random.Random(5)
    for _ in range(10):
        number = rng.randrange(len(index.toc))
        with spans_of(layers, index) as reader:
            shared_pool().forget(reader._lazy)
            before = decoded()
            member = reader.open_member(number)
            start = rng.randrange(member.size - 4096)
            member.read(start, start + 4096)
            assert 1 <= decoded() - before <= 2
            member.read(0, member.size)
            bound = member.size // (512 << 10) + 3
        assert decoded() - before <= bound


def test_sequential_reads_are_decoded_ahead_and_once(layers, tar_of, shards):
    """A member read from its start in pieces of 128 KiB finds most of them decoded; no span is decoded twice."""
    data = b"".join(shards.values())
    index = layers.add(tar_of({"weights": data}), GZIP)
    with spans_of(layers, index) as reader:
        before = decoded()
        member = reader.open_member(0)
        waited = 0
        for start in range(0, len(data), 128 << 10):
            stop = min(start + (128 << 10), len(data))
            piece = member.read_ready(start, stop)
            if piece is None:
                waited += 1
                piece = member.read(start, stop)
            assert piece == data[start:stop]
        assert decoded() - before == reader._lazy.spans.count
        assert waited < len(data) // (128 << 10) // 2


def test_decoding_ahead_ends_with_the_member(layers, tar_of, shards):
    """Reading one small member to its end decodes nothing of the members behind it."""
    index = layers.add(tar_of(shards), GZIP)
    with spans_of(layers, index) as reader:
        before = decoded()
        member = reader.open_member(3)
        for start in range(0, member.size, 50_000):
            member.read(start, min(start + 50_000, member.size))
        first, last = (
            reader._lazy.spans.find(reader.toc[3].offset),
            reader._lazy.spans.find(reader.toc[3].offset + member.size - 1),
        )
    assert decoded() - before == last - first + 1


def test_readers_that_want_one_span_share_its_decoding(layers, tar_of, shards):
    """32 threads over two readers that all want the same bytes decode each span once."""
    index = layers.add(tar_of(shards), GZIP)
    start = threading.Barrier(32)
    with spans_of(layers, index) as one, spans_of(layers, index) as two:
        before = decoded()

        def read(number: int) -> bytes:
            member = (one, two)[number % 2].open_member(7)
            start.wait(30)
            return bytes(member.read(0, member.size))

        with ThreadPoolExecutor(32) as executor:
            assert set(executor.map(read, range(32))) == {shards["model/07"]}
        touched = one._lazy.spans.find(one.toc[7].offset + one.toc[7].size - 1) - one._lazy.spans.find(
            one.toc[7].offset
        )
    assert decoded() - before == touched + 1


def test_a_pending_read_tells_when_it_is_done(layers, tar_of, shards):
    """The callback of a read comes once, when its bytes are there, or the error is; at once when they were before."""
    index = layers.add(tar_of(shards), GZIP)
    with spans_of(layers, index) as reader:
        member = reader.open_member(5)
        for _ in range(2):
            done = threading.Event()
            pending = member.begin_read(10, member.size)
            pending.call_when_done(done.set)
            assert done.wait(30)
            assert bytes(pending.result()) == shards["model/05"][10:]
        layers.blob_path(index.digest).rename(layers.store.home / "aside")
        with spans_of(layers, index) as other:
            done = threading.Event()
            pending = other.open_member(20).begin_read(0, 10)
            pending.call_when_done(done.set)
            assert done.wait(30)
            with pytest.raises(BlobNotFound):
                pending.result()
        (layers.store.home / "aside").rename(layers.blob_path(index.digest))


@pytest.mark.parametrize("layer_format", list(LayerFormat))
def test_a_flipped_bit_of_the_blob_is_never_served(small_spans, tar_of, layer_format):
    """1500 single flips of the blob: each read of a fresh reader is right or LayerCorrupt, and says where."""
    layers = small_spans
    rng = random.Random(8)
    files = {f"f{number}": compressible(rng, 70_000) for number in range(4)}
    raw = tar_of(files) if layer_format is LayerFormat.TAR else compressible(rng, 200_000)
    index = layers.add(raw, GZIP, layer_format)
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    good = path.read_bytes()
    corrupt = 0
    with path.open("r+b") as blob, spans_of(layers, index) as reader:
        spans = reader._lazy.spans
        assert spans.count > 5
        for _ in range(1500):
            at = rng.randrange(len(good))
            blob.seek(at)
            blob.write(bytes((good[at] ^ 1 << rng.randrange(8),)))
            blob.flush()
            shared_pool().forget(reader._lazy)
            number = rng.randrange(len(reader.toc))
            member = reader.toc[number]
            start = rng.randrange(member.size)
            stop = min(start + rng.choice([1, 4096, 100_000]), member.size)
            expected = raw[member.offset + start : member.offset + stop]
            touched = range(spans.find(member.offset + start), spans.find(member.offset + stop - 1) + 1)
            hit = [span for span in touched if spans.published_range(span)[0] <= at < spans.published_range(span)[1]]
            try:
                assert bytes(reader.open_member(number).read(start, stop)) == expected
            except LayerCorrupt as error:
                corrupt += 1
                assert error.layer == index.digest
                assert error.span in hit  # what the flip does not touch reads right
            shared_pool().drop(reader._lazy)  # what is decoded ahead is not to meet this flip in the next round
            blob.seek(at)
            blob.write(good[at : at + 1])
            blob.flush()
    assert corrupt > 100


def test_a_flipped_bit_of_a_record_is_never_served(small_spans, tar_of):
    """Flips of the stored values of checkpoints and checksums: right bytes or a named error, never wrong ones."""
    layers = small_spans
    rng = random.Random(9)
    files = {"f": compressible(rng, 350_000)}
    index = layers.add(tar_of(files), GZIP)
    store = layers.store
    with store.index.read() as txn:
        keys = [b"s" + key for key, _ in txn.iter_raw(schema.CHECKPOINTS)]
    assert len(keys) == 3  # checksums, directory, windows
    refused = 0
    for number in range(600):
        key = keys[number % 3]
        with store.index.write() as txn:
            good = bytes(txn._txn.get(key))
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            txn._txn.put(key, bytes(bad))
        try:
            with spans_of(layers, index) as reader:
                shared_pool().forget(reader._lazy)
                assert bytes(reader.open_member(0).read(0, len(files["f"]))) == files["f"]
        except IntegrityError:
            refused += 1
        with store.index.write() as txn:
            txn._txn.put(key, good)
    assert refused == 600


@given(st.data())
@settings(max_examples=60)
def test_wrong_checkpoints_are_never_served(small_spans, tar_of, data):
    """Values that verify and are wrong all the same (a bug, another layer's): right bytes or an error."""
    layers = small_spans
    content = compressible(random.Random(3), 200_000)
    index = layers.add(tar_of({"f": content}), GZIP)
    number = data.draw(st.integers(0, 1))
    value = bytearray(index.checkpoints[number])
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    checkpoints = [bytes(value) if place == number else old for place, old in enumerate(index.checkpoints)]
    with layers.store.lease("test") as lease:
        change = layers.store.change(lease)
        change.add_layer(index.digest, index.record, index.toc, index.span_checksums, checkpoints)
        change.commit()
    try:
        with spans_of(layers, index) as reader:
            shared_pool().forget(reader._lazy)
            assert bytes(reader.open_member(0).read(0, len(content))) == content
    except IntegrityError:
        pass


def test_damage_is_logged_once_per_span_and_healed_by_an_import(layers, tar_of, shards, caplog):
    """Ten reads of a rotten span make one log line; after an import the same open member reads right."""
    raw = tar_of(shards)
    index = layers.add(raw, GZIP)
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    with spans_of(layers, index) as reader, caplog.at_level(logging.ERROR):
        spans = reader._lazy.spans
        at = spans.published_range(4)[0] + 1000
        with path.open("r+b") as blob:
            blob.seek(at)
            old = blob.read(1)
            blob.seek(at)
            blob.write(bytes((old[0] ^ 1,)))
        number = next(at for at, member in enumerate(reader.toc) if spans.find(member.offset) == 4)
        member = reader.open_member(number)
        for _ in range(10):
            with pytest.raises(LayerCorrupt, match="span 4"):
                member.read(0, 10)
        assert len(caplog.records) == 1
        assert str(index.digest) in caplog.text
        layers.add(raw, GZIP)
        assert bytes(member.read(0, 10)) == shards[reader.toc[number].path.decode()][:10]


def test_a_truncated_blob_is_an_error_where_bytes_are_missing(layers, tar_of, shards):
    """Spans before the cut read, those behind it are LayerCorrupt."""
    index = layers.add(tar_of(shards), GZIP)
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)
    with spans_of(layers, index) as reader:
        shared_pool().forget(reader._lazy)
        assert bytes(reader.open_member(0).read(0, 100)) == shards["model/00"][:100]
        with pytest.raises(LayerCorrupt, match="missing"):
            reader.open_member(len(reader.toc) - 1).read(0, 100)


def test_a_member_that_has_a_file_is_read_from_it(layers, tar_of, shards):
    """Where another layer has brought the member's file, the lazy layer's member is native at once."""
    layers.keeps_checkpoints = False
    first = layers.add(tar_of({"model/00": shards["model/00"]}), GZIP)
    with LayerReader(layers.store, first.digest) as reader:
        read_all(reader)
    layers.keeps_checkpoints = True
    second = layers.add(tar_of(shards), GZIP)
    with LayerReader(layers.store, second.digest) as reader:
        before = decoded()
        member = reader.open_member(0)
        assert member.state == "native"
        assert bytes(member.read(0, member.size)) == shards["model/00"]
        assert decoded() == before
        assert reader.open_member(1).state == "lazy"


def test_a_read_goes_on_when_its_layer_is_closed(layers, tar_of, shards):
    """Closing a reader waits for what is decoded ahead and leaves nothing of it behind; others read on."""
    index = layers.add(tar_of({"weights": b"".join(shards.values())}), GZIP)
    with LayerReader(layers.store, index.digest) as other:
        for _ in range(20):
            with LayerReader(layers.store, index.digest) as reader:
                shared_pool().forget(reader._lazy)
                member = reader.open_member(0)
                for start in range(0, 3 * MIB, MIB):
                    member.read(start, start + MIB)
            assert shared_pool().pending(reader._lazy) == 0
        assert bytes(other.open_member(0).read(0, 100)) == shards["model/00"][:100]


def test_many_windows_are_fetched_and_forgotten(layers, tar_of, shards, monkeypatch):
    """A layer with more values of windows than are kept in memory reads right in any order."""
    monkeypatch.setattr("kitfs.layer.checkpoints._VALUE_SIZE", 300)
    monkeypatch.setattr(lazy_layer, "_VALUES_MAX", 2)
    layers.spacing = 50_000
    data = compressible(random.Random(2), 1_000_000)
    index = layers.add(tar_of({"f": data}), GZIP)
    assert len(index.checkpoints) > 3
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        for start in random.Random(1).sample(range(len(data) - 10), 100):
            assert bytes(member.read(start, start + 10)) == data[start : start + 10]


PROGRAM = """
import os, sys
from pathlib import Path
from kitfs.digest import Digest
from kitfs.layer.reader import LayerReader
from kitfs.store.store import Store

def read(home, layer):
    with Store.open(Path(home)) as store, LayerReader(store, Digest.parse(layer)) as reader:
        member = reader.open_member(0)
        return bytes(member.read(0, 10))

first = read(*sys.argv[1:3])
pid = os.fork()
if pid == 0:
    os._exit(0 if read(*sys.argv[1:3]) == first else 1)
assert os.waitpid(pid, 0)[1] == 0
reader = LayerReader(Store.open(Path(sys.argv[1])), Digest.parse(sys.argv[2]))
member = reader.open_member(0)
for start in range(0, 3 << 20, 1 << 20):
    member.begin_read(start, start + 10)
print("right")
"""


def test_a_forked_process_has_threads_of_its_own(layers, tar_of, shards):
    """A child of a process that has decoded decodes too, and a process that exits in the middle ends in order."""
    index = layers.add(tar_of({"weights": b"".join(shards.values())}), GZIP)
    command = [sys.executable, "-c", PROGRAM, str(layers.store.home), str(index.digest)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"right\n", b"")


def test_a_layer_recorded_without_checkpoints_is_decoded_once(layers, tar_of, shards):
    """A store that is older than checkpoints keeps working: its gzip layers are decoded whole, into member files."""
    layers.keeps_checkpoints = False
    index = layers.add(tar_of({"f": shards["model/00"]}), GZIP)
    with Store.open(layers.store.home) as store, LayerReader(store, index.digest) as reader:
        assert read_all(reader) == {"f": shards["model/00"]}
        assert reader.open_member(0).state == "native"
    assert layers.store.find_member(Digest.of(shards["model/00"])) is not None
