"""Compressed layers: decoded once, into verified member files that everybody shares, and never served wrong."""

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kitfs.digest import Digest
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.errors import StoreWriteFailed
from kitfs.store.store import Store

GZIP, ZSTD = Compression.GZIP, Compression.ZSTD


class CountingStore(Store):
    """A real store that counts decodings: each holds a lease."""

    decodings = 0

    def lease(self, purpose: str):
        self.decodings += purpose.startswith("decode")
        return super().lease(purpose)


@pytest.fixture(autouse=True)
def without_checkpoints(layers):
    """Layers of this module are decoded whole: zstd always is, gzip where it has no checkpoints."""
    layers.keeps_checkpoints = False


@pytest.fixture
def counting(layers):
    with CountingStore.open(layers.store.home) as store:
        yield store


def read_all(reader: LayerReader) -> dict[str, bytes]:
    found = {}
    for number, member in enumerate(reader.toc):
        found[member.path.decode()] = bytes(reader.open_member(number).read(0, member.size))
    return found


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_many_readers_cause_one_decoding(layers, counting, tar_of, files, compression):
    """32 threads over two readers of one layer that all start at once decode it once, and all read right."""
    index = layers.add(tar_of(files), compression)
    start = threading.Barrier(32)
    with LayerReader(counting, index.digest) as one, LayerReader(counting, index.digest) as two:

        def read(number: int) -> bool:
            at = number % len(index.toc)
            member = (one, two)[number % 2].open_member(at)
            start.wait(30)
            return bytes(member.read(0, member.size)) == files[index.toc[at].path.decode()]

        with ThreadPoolExecutor(32) as executor:
            assert all(executor.map(read, range(32)))
    assert counting.decodings == 1


def test_members_are_there_for_the_next_reader(layers, counting, tar_of, files):
    """Once decoded, a layer is read from member files, even when its blob is gone."""
    index = layers.add(tar_of(files), GZIP)
    with LayerReader(counting, index.digest) as reader:
        assert read_all(reader) == files
    layers.blob_path(index.digest).rename(layers.store.home / "aside")
    with LayerReader(counting, index.digest) as reader:
        assert {reader.open_member(at).state for at in range(len(files))} == {"native"}
        assert read_all(reader) == files
    assert counting.decodings == 1
    (layers.store.home / "aside").rename(layers.blob_path(index.digest))


def test_members_are_shared_between_layers(layers, counting, tar_of, files):
    """A file that another layer has brought, in whatever compression, is native at once."""
    first = layers.add(tar_of(files), GZIP)
    second = layers.add(tar_of({f"other/{name}": data for name, data in files.items()}), ZSTD)
    with LayerReader(counting, first.digest) as reader:
        read_all(reader)
    with LayerReader(counting, second.digest) as reader:
        assert {reader.open_member(at).state for at in range(len(files))} == {"native"}
        read_all(reader)
    assert counting.decodings == 1


def test_a_decoding_writes_no_member_that_is_there(layers, counting, tar_of, files):
    """Decoding a layer for its one new file leaves the trusted files of the others as they are."""
    with LayerReader(layers.store, layers.add(tar_of(files), GZIP).digest) as reader:
        read_all(reader)
    paths = [layers.store.layout.member(Digest.of(data)) for data in files.values() if data]
    before = [path.stat() for path in paths]
    with LayerReader(counting, layers.add(tar_of({**files, "new": b"new"}), GZIP).digest) as reader:
        assert read_all(reader)["new"] == b"new"
    assert counting.decodings == 1
    assert [path.stat().st_ino for path in paths] == [status.st_ino for status in before]


def test_a_touched_member_is_hashed_once_and_trusted_again(layers, counting, tar_of, files):
    """A member whose stamp differs and whose bytes are right is stamped anew, without decoding."""
    index = layers.add(tar_of(files), GZIP)
    with LayerReader(counting, index.digest) as reader:
        read_all(reader)
    number = next(at for at, member in enumerate(index.toc) if member.path == b"model/large")
    os.utime(layers.store.layout.member(Digest.of(files["model/large"])), ns=(1, 1))
    with LayerReader(counting, index.digest) as reader:
        member = reader.open_member(number)
        assert member.state == "lazy"
        assert bytes(member.read(0, member.size)) == files["model/large"]
        assert reader.open_member(number).state == "native"
    assert counting.decodings == 1


def test_a_member_with_wrong_bytes_is_made_anew(layers, counting, tar_of, files):
    """A member file that was overwritten is never served: it is dropped and decoded again."""
    index = layers.add(tar_of(files), GZIP)
    with LayerReader(counting, index.digest) as reader:
        read_all(reader)
    path = layers.store.layout.member(Digest.of(files["model/large"]))
    path.chmod(0o600)
    path.write_bytes(bytes(len(files["model/large"])))
    with LayerReader(counting, index.digest) as reader:
        assert read_all(reader) == files
    assert counting.decodings == 2


@pytest.mark.parametrize("is_running", [True, False])
def test_an_evicted_member_is_made_anew(layers, tar_of, files, is_running):
    """A member whose file is gone while its record is there is decoded again, even while the layer is decoded."""
    rest = {f"f{number}": random.Random(number).randbytes(1 << 20) for number in range(10)} if is_running else {}
    index = layers.add(tar_of(files | rest), ZSTD)
    number = next(at for at, member in enumerate(index.toc) if member.path == b"model/large")
    with LayerReader(layers.store, index.digest) as reader:
        if not is_running:
            read_all(reader)
        for _ in range(3):
            reader.open_member(number).read(0, 1)
            layers.store.layout.member(Digest.of(files["model/large"])).unlink()
        member = reader.open_member(number)
        assert bytes(member.read(0, member.size)) == files["model/large"]


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
@pytest.mark.parametrize("layer_format", list(LayerFormat))
def test_a_flipped_bit_of_a_compressed_layer_is_never_served(layers, tar_of, compression, layer_format):
    """60 single flips: every member reads right or is LayerCorrupt, and what comes before damage still reads."""
    rng = random.Random(8)
    files = {f"f{number}": rng.randbytes(500) * 40 for number in range(4)}
    raw = tar_of(files) if layer_format is LayerFormat.TAR else files["f0"]
    index = layers.add(raw, compression, layer_format)
    expected = [raw[member.offset : member.offset + member.size] for member in index.toc]
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    good = path.read_bytes()
    corrupt = 0
    for _ in range(60):
        bad = bytearray(good)
        at = rng.randrange(len(bad))
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        for folder in layers.store.layout.member(index.digest).parent.parent.iterdir():
            for member in folder.iterdir():
                member.unlink()
        with LayerReader(layers.store, index.digest) as reader:
            for number, data in enumerate(expected):
                try:
                    assert bytes(reader.open_member(number).read(0, len(data))) == data
                except LayerCorrupt as error:
                    corrupt += 1
                    assert error.layer == index.digest
                    # The gzip has several blocks, so half of it holds the first member; zstd made one block of all.
                    assert number > 0 or at < len(good) // 2 or (compression, layer_format) != (GZIP, LayerFormat.TAR)
    assert corrupt > 40
    path.write_bytes(good)


def test_a_corrupt_layer_is_decoded_once_until_it_is_replaced(layers, counting, tar_of, files):
    """Reads of a rotten layer fail without decoding it again; an import puts it right for the same reader."""
    raw = tar_of(files)
    index = layers.add(raw, GZIP)
    path = layers.blob_path(index.digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-20])
    number = next(at for at, member in enumerate(index.toc) if member.path == b"model/twin")
    with LayerReader(counting, index.digest) as reader:
        member = reader.open_member(len(index.toc) - 1)
        other = reader.open_member(number - 1)
        bad = [opened for opened in (member, other) if not is_readable(opened)]
        decodings = counting.decodings
        assert decodings == 1
        for opened in bad * 5:
            with pytest.raises(LayerCorrupt, match=r"cut short|digest"):
                opened.read(0, opened.size)
        assert counting.decodings == decodings
        layers.add(raw, GZIP)
        assert read_all(reader) == files


def is_readable(member) -> bool:
    try:
        member.read(0, member.size)
    except LayerCorrupt:
        return False
    return True


def test_a_store_that_can_not_be_written_is_an_error_and_leaves_nothing(layers, tar_of, files):
    """Where a member can not be placed, the read fails with the store's error, and works once it can."""
    index = layers.add(tar_of({"f": files["model/large"]}), GZIP)
    folder = layers.store.layout.member(Digest.of(files["model/large"])).parent
    folder.rename(folder.with_name("aside"))
    folder.write_bytes(b"in the way")
    with LayerReader(layers.store, index.digest) as reader:
        for _ in range(2):
            with pytest.raises((StoreWriteFailed, OSError)):
                reader.open_member(0).read(0, 10)
    folder.unlink()
    folder.with_name("aside").rename(folder)
    with LayerReader(layers.store, index.digest) as reader:
        assert bytes(reader.open_member(0).read(0, 10)) == files["model/large"][:10]


def test_closing_ends_a_decoding_that_nobody_waits_for(layers, tar_of):
    """After close no thread of the decoding is left, nor an ingest, and a later reader can decode the layer."""
    rng = random.Random(6)
    files = {"first": b"first", **{f"f{number}": rng.randbytes(2 << 20) for number in range(20)}}
    index = layers.add(tar_of(files), ZSTD)
    before = set(threading.enumerate())  # an indexer that was dropped ends its threads when it is collected
    with LayerReader(layers.store, index.digest) as reader:
        assert bytes(reader.open_member(0).read(0, 5)) == b"first"
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert [thread for thread in left if thread.name.startswith(("kitfs-decode", "kitfs-write"))] == []
    assert list(layers.store.layout.ingest.iterdir()) == []
    with LayerReader(layers.store, index.digest) as reader:
        assert read_all(reader) == files


def test_a_closed_reader_still_reads_what_is_open(layers, tar_of, files):
    """Members that are native go on after close; one that would need decoding is an error, not a hang."""
    index = layers.add(tar_of(files), GZIP)
    reader = LayerReader(layers.store, index.digest)
    fresh = reader.open_member(len(index.toc) - 2)
    member = reader.open_member(1)
    member.read(0, member.size)
    reader.close()
    assert bytes(member.read(0, 5)) == files[index.toc[1].path.decode()][:5]
    with LayerReader(layers.store, index.digest) as other:
        evicted = other.open_member(1)
    assert bytes(evicted.read(0, 1)) == files[index.toc[1].path.decode()][:1]
    assert fresh.size == index.toc[-2].size


READ_ALL = """
import hashlib, sys
from pathlib import Path
from kitfs.digest import Digest
from kitfs.layer.reader import LayerReader
from kitfs.store.store import Store
with Store.open(Path(sys.argv[1])) as store, LayerReader(store, Digest.parse(sys.argv[2])) as reader:
    sys.stdin.readline()
    for number, member in enumerate(reader.toc):
        data = reader.open_member(number).read(0, member.size)
        assert hashlib.sha256(data).digest() == member.digest, member.path
print("right")
"""


def test_processes_that_decode_at_once_do_no_harm(layers, tar_of, files):
    """Four processes that decode one layer at the same moment all read right, and the store is clean."""
    index = layers.add(tar_of(files), GZIP)
    command = [sys.executable, "-c", READ_ALL, str(layers.store.home), str(index.digest)]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for reader in readers:
        reader.stdin.write(b"\n")
        reader.stdin.flush()
    assert [reader.communicate()[0] for reader in readers] == [b"right\n"] * 4
    with LayerReader(layers.store, index.digest) as reader:
        assert read_all(reader) == files


def test_a_process_that_exits_while_decoding_ends_in_order(layers, tar_of):
    """A program that forgets to close and exits during a decoding neither hangs nor leaves a lease."""
    rng = random.Random(6)
    index = layers.add(tar_of({"a": b"a", **{f"f{number}": rng.randbytes(1 << 20) for number in range(40)}}), ZSTD)
    program = """
import sys
from pathlib import Path
from kitfs.digest import Digest
from kitfs.layer.reader import LayerReader
from kitfs.store.store import Store
reader = LayerReader(Store.open(Path(sys.argv[1])), Digest.parse(sys.argv[2]))
print(bytes(reader.open_member(0).read(0, 1)).decode())
"""
    command = [sys.executable, "-c", program, str(layers.store.home), str(index.digest)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n", b"")


def test_member_file_whose_status_never_stands_still_is_read_right(layers, tar_of, files, tmp_path):
    """While another program links and unlinks a member's file all the time, no stamp holds; its bytes are served."""
    index = layers.add(tar_of(files), ZSTD)
    with LayerReader(layers.store, index.digest) as reader:
        read_all(reader)
    number = max(range(len(index.toc)), key=lambda at: index.toc[at].size)
    member = layers.store.layout.member(Digest.from_raw(index.toc[number].digest))
    inode = member.stat().st_ino
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            os.link(member, tmp_path / "link")
            os.unlink(tmp_path / "link")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with LayerReader(layers.store, index.digest) as reader:
            data = reader.open_member(number).read(0, index.toc[number].size)
    finally:
        done.set()
        thread.join()
    assert bytes(data) == files[index.toc[number].path.decode()]
    assert member.stat().st_ino == inode  # right bytes are not dropped: another process may have placed them
