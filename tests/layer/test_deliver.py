"""Members of every kind of layer come out whole and verified, or not at all, and the store stays as it is."""

import os
import random
import threading
from collections.abc import Callable

import pytest

from kitfs.digest import Digest
from kitfs.layer.crew import Cancelled, Crew, run_apart
from kitfs.layer.deliver import STRETCH_SIZE, Deliverer
from kitfs.layer.errors import LayerCorrupt
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.oci.mediatype import Compression, LayerFormat
from kitfs.store.records import TocMember

FORMS = [
    ("none", True),
    ("gzip", True),
    ("zstd", True),
    ("gzip", False),
    ("zstd", False),
]


class Memory:
    """Takes files; a twin of the directory that is unpacked into, which keeps them in memory."""

    def __init__(self, leaves_out: Callable[[TocMember], bool] = lambda member: False) -> None:
        self.placed: dict[bytes, bytes] = {}
        self.discarded: list[bytes] = []
        self.copied = 0
        self.advanced = 0
        self._leaves_out = leaves_out
        self._lock = threading.Lock()

    def create(self, _index: int, member: TocMember) -> "MemoryFile | None":
        return None if self._leaves_out(member) else MemoryFile(self, member)

    def advance(self, size: int) -> None:
        with self._lock:
            self.advanced += size


class MemoryFile:
    def __init__(self, memory: Memory, member: TocMember) -> None:
        self._memory, self._member = memory, member
        self._data = bytearray(member.size)
        self._written = 0

    def write(self, data: bytes | memoryview, offset: int) -> None:
        self._data[offset : offset + len(data)] = data
        with self._memory._lock:
            self._written += len(data)

    def copy(self, fd: int, start: int, stop: int) -> int:
        data = os.pread(fd, stop - start, start)
        self.write(data, start)
        self._memory.copied += len(data)
        return len(data)

    def place(self) -> None:
        assert self._written == self._member.size, "placed before it was whole, or written twice"
        assert self._member.path not in self._memory.placed
        self._memory.placed[self._member.path] = bytes(self._data)

    def discard(self) -> None:
        self._memory.discarded.append(self._member.path)


@pytest.fixture(scope="module")
def many() -> dict[bytes, bytes]:
    """Files whose borders lie everywhere in spans: tiny ones by the hundred, large ones, empty ones between."""
    rng = random.Random(11)
    words = [rng.randbytes(8) for _ in range(64)]
    found = {}
    for number in range(300):
        found[b"d/%03d" % number] = b"".join(rng.choices(words, k=rng.randrange(60)))
    for number, size in enumerate((3 << 20, 700_001, 0, 1 << 20, STRETCH_SIZE + 12345, 5)):
        found[b"d/large-%d" % number] = b"".join(rng.choices(words, k=size // 8 + 1))[:size]
    return found


def deliver(layers, digest: Digest, memory: Memory) -> None:
    def work(crew: Crew) -> None:
        deliverer = Deliverer(layers.store, crew)
        with LayerReader(layers.store, digest, materialise=Materialise.NEVER) as reader:
            deliverer.deliver(reader, memory.create, memory.advance)
        crew.drain()

    run_apart("test", work)


@pytest.mark.parametrize(("compression", "keeps_checkpoints"), FORMS)
def test_every_member_comes_out(layers, tar_of, many, compression, keeps_checkpoints):
    """All files are placed once with their bytes, all bytes are told, and nothing is written to the store."""
    layers.keeps_checkpoints = keeps_checkpoints
    index = layers.add(tar_of({name.decode(): data for name, data in many.items()}), Compression(compression))
    memory = Memory()
    deliver(layers, index.digest, memory)
    assert memory.placed == many
    assert memory.advanced == sum(map(len, many.values()))
    assert memory.discarded == []
    assert [path for path in (layers.store.home / "members").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("compression", "keeps_checkpoints"), FORMS)
def test_raw_layer_comes_out(layers, compression, keeps_checkpoints):
    """The one member of a raw layer, compressed or not, has an empty path and all bytes."""
    layers.keeps_checkpoints = keeps_checkpoints
    data = random.Random(3).randbytes(3 << 20)
    index = layers.add(data, Compression(compression), LayerFormat.RAW)
    memory = Memory()
    deliver(layers, index.digest, memory)
    assert memory.placed == {b"": data}


@pytest.mark.parametrize(("compression", "keeps_checkpoints"), FORMS)
def test_files_that_are_not_wanted_are_passed_over(layers, tar_of, many, compression, keeps_checkpoints):
    """What is there already is not written; its bytes count as done."""
    layers.keeps_checkpoints = keeps_checkpoints
    index = layers.add(tar_of({name.decode(): data for name, data in many.items()}), Compression(compression))
    memory = Memory(lambda member: member.size % 2 == 0)
    deliver(layers, index.digest, memory)
    assert memory.placed == {name: data for name, data in many.items() if len(data) % 2}
    assert memory.advanced == sum(map(len, many.values()))


@pytest.mark.parametrize(("compression", "keeps_checkpoints"), FORMS)
def test_rot_is_an_error_and_nothing_wrong_is_placed(layers, tar_of, many, compression, keeps_checkpoints):
    """A changed byte of the blob ends it with LayerCorrupt; what is placed is right, what was begun is discarded."""
    layers.keeps_checkpoints = keeps_checkpoints
    index = layers.add(tar_of({name.decode(): data for name, data in many.items()}), Compression(compression))
    path = layers.blob_path(index.digest)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(raw)
    memory = Memory()
    with pytest.raises(LayerCorrupt):
        deliver(layers, index.digest, memory)
    assert memory.placed.items() <= many.items()
    assert len(memory.placed) < len(many)
    assert not set(memory.discarded) & set(memory.placed)


@pytest.mark.parametrize(("compression", "keeps_checkpoints"), FORMS)
def test_members_own_file_is_copied(layers, tar_of, many, compression, keeps_checkpoints):
    """A member that was materialised is copied from its own file, while its stamp holds; a changed one is not."""
    layers.keeps_checkpoints = keeps_checkpoints
    index = layers.add(tar_of({name.decode(): data for name, data in many.items()}), Compression(compression))
    for member in index.toc:
        if member.path in (b"d/large-0", b"d/large-3"):
            digest = Digest.from_raw(member.digest)
            with layers.store.lease("test") as lease, layers.store.ingest(lease) as ingest:
                ingest.write(many[member.path])
                ingest.commit_member(digest, member.size)
                change = layers.store.change(lease)
                change.add_member(digest, member.size)
                change.commit()
            if member.path == b"d/large-3":
                changed = layers.store.layout.member(digest)
                changed.chmod(0o600)
                changed.write_bytes(bytes(member.size))
    memory = Memory()
    deliver(layers, index.digest, memory)
    assert memory.placed == many
    assert memory.copied == len(many[b"d/large-0"])


def test_failure_of_a_file_ends_it(layers, tar_of, many):
    """What a file's maker raises is what the caller gets, and the files that were begun are discarded."""
    index = layers.add(tar_of({name.decode(): data for name, data in many.items()}), Compression.GZIP)

    class Full(Memory):
        def create(self, index: int, member: TocMember) -> MemoryFile | None:
            if member.path == b"d/large-4":
                raise OSError(28, "No space left on device")
            return super().create(index, member)

    memory = Full()
    with pytest.raises(OSError, match="No space"):
        deliver(layers, index.digest, memory)
    assert b"d/large-4" not in memory.placed


def test_cancelled_crew_begins_nothing():
    """After `cancel` the one who submits is told, and tasks that wait are dropped."""
    with Crew("test", threads=2) as crew:
        crew.cancel()
        with pytest.raises(Cancelled):
            crew.submit(lambda: None)
        with pytest.raises(Cancelled):
            crew.drain()


def test_first_error_of_a_crew_is_told():
    """The error of a task reaches who drains, and no task begins after it."""
    done = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise ValueError("first")

    with Crew("test", threads=1) as crew:
        crew.submit(fail)
        crew.submit(lambda: done.append(1))
        gate.set()
        with pytest.raises(ValueError, match="first"):
            crew.drain()
    assert done == []
