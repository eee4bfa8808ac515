"""Every way in which model loaders read their files gives the right bytes, from a gzip layer and from a plain one.

The reading is done by other processes, which get a file of the mount and the same file as it was before packing.
"""

import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20


@pytest.fixture(params=["gzip", "plain"])
def model(request, kitfs, weights) -> Path:
    """The model's folder in a mount that nobody has read yet."""
    kitfs.run("import", weights.layouts[request.param])
    return kitfs.mount("weights:1") / "model"


def read_both(code: str, mounted: Path, source: Path, name: str) -> str:
    """Run code in a process of its own, with a file of the mount and its source."""
    command = [sys.executable, "-c", code, str(mounted / name), str(source / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SAFETENSORS = """
import sys
from safetensors import safe_open
from safetensors.numpy import load_file
for path in sys.argv[1:]:
    with safe_open(path, framework="numpy") as opened:
        names = sorted(opened.keys())
        digests = [hash(opened.get_tensor(name).tobytes()) for name in names]
    assert digests == [hash(tensor.tobytes()) for _, tensor in sorted(load_file(path).items())]
    print(len(names), *digests)
"""


def test_safetensors_reads_all_tensors(model, weights):
    """safetensors maps the file and reads each tensor as it was in the source."""
    mounted, source = read_both(SAFETENSORS, model, weights.source, "model.safetensors").splitlines()
    assert mounted == source
    assert mounted.split()[0] == str(weights.tensors)


LLAMA = """
import mmap, os, random, sys
from pathlib import Path
expected = Path(sys.argv[2]).read_bytes()
size = len(expected)
with open(sys.argv[1], "rb", buffering=0) as stream:
    stream.seek(0, os.SEEK_END)
    assert stream.tell() == size
    stream.seek(size - 1216)
    assert stream.read(1216) == expected[-1216:]
    stream.seek(0)
    for start in range(0, 1 << 20, 4096):
        assert stream.read(4096) == expected[start : start + 4096]
    view = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
for start in random.Random(1).sample(range(0, size, 4096), 2000):
    assert view[start : start + 64] == expected[start : start + 64], start
assert view[:] == expected
print("right")
"""


def test_llama_reads_the_tail_the_header_and_then_maps_all(model, weights):
    """The last 1216 bytes, the header by 4 KiB, then one MAP_SHARED and MAP_POPULATE of the whole file."""
    assert read_both(LLAMA, model, weights.source, "model.safetensors") == "right"


TORCH = """
import mmap, struct, sys, zipfile, zlib
from pathlib import Path
expected = Path(sys.argv[2]).read_bytes()
with open(sys.argv[1], "rb") as stream:
    assert stream.read(4) == b"PK\\3\\4"
    assert stream.read(4096) == expected[4:4100]
    with zipfile.ZipFile(stream) as archive:  # the end record, then the central directory
        for info in archive.infolist():
            data = archive.read(info)  # compared with its CRC
            assert zlib.crc32(data) == info.CRC
    view = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    for info in archive.infolist():
        name_size, extra_size = struct.unpack_from("<HH", view, info.header_offset + 26)
        start = info.header_offset + 30 + name_size + extra_size
        assert start % 64 == 0
        assert view[start : start + info.file_size] == expected[start : start + info.file_size]
print(len(archive.infolist()))
"""


def test_torch_reads_a_checkpoint_member_by_member(model, weights):
    """A zip: end record, central directory, each member in order; then the storages from a private map."""
    assert read_both(TORCH, model, weights.source, "model.pt") == str(weights.tensors + 1)


THREADS = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
expected = Path(sys.argv[2]).read_bytes()
size = len(expected)
descriptor = os.open(sys.argv[1], os.O_RDONLY)
barrier = threading.Barrier(8)
def read(thread):
    barrier.wait(30)
    for start in range(thread * 1000 * 1000, size, 8 * 1000 * 1000):
        data = os.pread(descriptor, 16 << 20, start)
        assert len(data) == min(16 << 20, size - start), (start, len(data))
        assert data == expected[start : start + (16 << 20)], start
    return True
with ThreadPoolExecutor(8) as executor:
    assert all(executor.map(read, range(8)))
print("right")
"""


def test_eight_threads_read_16_mib_each_at_interleaved_places(model, weights):
    """vLLM's prefetch: no read is short before the end, whatever the others read meanwhile."""
    assert read_both(THREADS, model, weights.source, "model.safetensors") == "right"


DIRECT = """
import mmap, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
expected = Path(sys.argv[2]).read_bytes()
size = len(expected)
assert size % 512
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
def read(start, length):
    buffer = mmap.mmap(-1, length)
    count = os.preadv(descriptor, [buffer], start)
    assert count == min(length, size - start), (start, count)
    assert buffer[:count] == expected[start : start + count], start
with ThreadPoolExecutor(8) as executor:
    list(executor.map(lambda start: read(start, 1 << 20), range(0, size, 1 << 20)))
read(0, -(-size // 4096) * 4096)
read(size // 4096 * 4096, 4096)
read(4096 * 77, 3 << 20)
print("right")
"""


def test_direct_io_reads_right_bytes_to_an_odd_end(model, weights):
    """O_DIRECT past the page cache: 1 MiB by 8 threads, all at once, and the tail that is no whole sector."""
    assert read_both(DIRECT, model, weights.source, "model.safetensors") == "right"


# Offsets of io_uring_params and of its rings: io_uring_setup(2), linux/io_uring.h.
IO_URING = """
import ctypes, mmap, os, struct, sys
from pathlib import Path
SETUP, ENTER, GETEVENTS, READ = 425, 426, 1, 22
SQ_RING, CQ_RING, SQES = 0, 0x8000000, 0x10000000
DEPTH, SIZE = 32, 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
params = (ctypes.c_uint32 * 30)()
ring = libc.syscall(SETUP, DEPTH, ctypes.byref(params))
if ring < 0:
    print("refused:", os.strerror(ctypes.get_errno()))
    sys.exit()
sq_entries, cq_entries = params[0], params[1]
_, sq_tail, sq_mask, _, _, _, sq_array = params[10:17]
cq_head, cq_tail, cq_mask, _, _, cqes = params[20:26]
sq = mmap.mmap(ring, sq_array + 4 * sq_entries, offset=SQ_RING)
cq = mmap.mmap(ring, cqes + 16 * cq_entries, offset=CQ_RING)
entries = mmap.mmap(ring, 64 * sq_entries, offset=SQES)
word = lambda memory, at: struct.unpack_from("=I", memory, at)[0]

expected = Path(sys.argv[2]).read_bytes()
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffers = [mmap.mmap(-1, SIZE) for _ in range(DEPTH)]
addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
wanted, free, starts, done = list(range(0, len(expected), SIZE)), list(range(DEPTH)), {}, 0
wanted.reverse()  # the tail first
while wanted or starts:
    submitted = 0
    while wanted and free:
        slot, start, tail = free.pop(), wanted.pop(0), word(sq, sq_tail)
        place = tail & word(sq, sq_mask)
        entry = struct.pack("=BBHiQQII", READ, 0, 0, file, start, addresses[slot], SIZE, 0)
        entries[64 * place : 64 * place + 64] = entry + struct.pack("=Q", slot) + bytes(24)
        struct.pack_into("=I", sq, sq_array + 4 * place, place)
        struct.pack_into("=I", sq, sq_tail, tail + 1 & 0xFFFFFFFF)
        starts[slot] = start
        submitted += 1
    assert libc.syscall(ENTER, ring, submitted, 1, GETEVENTS, None, 0) == submitted
    while (head := word(cq, cq_head)) != word(cq, cq_tail):
        slot, result = struct.unpack_from("=Qi", cq, cqes + 16 * (head & word(cq, cq_mask)))
        struct.pack_into("=I", cq, cq_head, head + 1 & 0xFFFFFFFF)
        start = starts.pop(slot)
        assert result == min(SIZE, len(expected) - start), (start, result)
        assert buffers[slot][:result] == expected[start : start + result], start
        free.append(slot)
        done += 1
print(done)
"""


def test_io_uring_reads_right_bytes(model, weights):
    """32 direct reads of 1 MiB in flight, as Run:ai's streamer has them; none is short before the end."""
    answer = read_both(IO_URING, model, weights.source, "model.safetensors")
    if answer.startswith("refused: "):
        pytest.skip(f"io_uring_setup is {answer}")
    size = (weights.source / "model.safetensors").stat().st_size
    assert answer == str(-(-size // MIB))


MAPS = """
import hashlib, mmap, os, sys, numpy
for path in sys.argv[1:]:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    views = [mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) for _ in range(2)]
    os.close(descriptor)
    backward = b"".join(views[0][max(at - 65536, 0) : at] for at in range(len(views[0]), 0, -65536))
    maps = (views[1], backward, numpy.memmap(path, mode="r").tobytes())
    print(*(hashlib.sha256(data).hexdigest() for data in maps))
"""


def test_maps_outlive_their_descriptor_and_read_in_any_order(model, weights):
    """transformers closes its descriptors before the first fault; forward, backward, private and shared agree."""
    mounted, source = read_both(MAPS, model, weights.source, "model.safetensors").splitlines()
    assert mounted == source
