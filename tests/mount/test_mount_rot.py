"""One bit flipped under a real mount: right bytes or EIO, `kitfs fsck` names it, ``--repair`` mends it.

A sample of what ``tests/rot`` does without a mount: 6 flips of each kind, 60 in a campaign.
"""

import errno
import json
import mmap
import os
import random

import pytest

from kitfs.digest import Digest
from kitfs.layer.reader import LayerReader
from kitfs.store.store import Store

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
FLIPS = 60 if CAMPAIGN else 4
PIECE_SIZE = 64 << 10
SIX_BITS = bytes(value & 0x3F for value in range(256))


@pytest.fixture
def files():
    """Three files of 0.5 to 1.7 MB, which gzip makes smaller: some 8 spans."""
    rng = random.Random(3)
    return {
        name: rng.randbytes(size).translate(SIX_BITS)
        for name, size in (("a", 900_001), ("b", 1_700_000), ("c", 512_345))
    }


def flip_bit(path, bit):
    """Flip a bit in place, mtime and mode as before."""
    before = path.stat()
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ 1 << bit % 8
        file.seek(bit // 8)
        file.write(bytes((byte,)))
    path.chmod(before.st_mode & 0o7777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_pieces(path, size):
    """``(start, bytes or None for EIO)`` of each piece, past the page cache."""
    buffer = mmap.mmap(-1, PIECE_SIZE)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for start in range(0, size, PIECE_SIZE):
            try:
                count = os.preadv(descriptor, [buffer], start)
                yield start, buffer[:count]
            except OSError as error:
                assert error.errno == errno.EIO
                yield start, None
    finally:
        os.close(descriptor)


def fsck(machine, *options, status):
    """What a check finds; a member that is just being placed is a note."""
    report = json.loads(machine.run("fsck", "--read-data", "--format", "json", *options, status=status).stdout)
    return [(one["damage"], one["name"]) for one in report["findings"] if one["state"] != "note"]


def test_a_flip_in_a_gzip_layer_is_eio_where_it_hits(machine, import_gzip, files):
    """Pieces of other spans are right; the check names the blob, and finds nothing once the bit is back."""
    layer = import_gzip("gz", files)
    with Store.open(machine.home) as store, LayerReader(store, layer) as reader:
        path = store.layout.blob(layer)
        offsets = {member.path.decode(): member.offset for member in reader.toc}
        spans = reader._lazy.spans
        places = [(spans.published_range(span), spans.range(span)) for span in range(spans.count)]
    rng = random.Random(8)
    for _ in range(FLIPS):
        bit = rng.randrange(8 * path.stat().st_size)
        broken = [decoded for (start, stop), decoded in places if start <= bit // 8 < stop]
        flip_bit(path, bit)
        mount = machine.mount("mnt", "gz:1")
        for name, data in files.items():
            for start, found in read_pieces(mount / name, len(data)):
                low, high = offsets[name] + start, offsets[name] + min(start + PIECE_SIZE, len(data))
                if found is None:
                    assert any(low < stop and begin < high for begin, stop in broken), (bit, name, start)
                else:
                    assert found == data[start : start + PIECE_SIZE], (bit, name, start)
        assert fsck(machine, status=6) == [("wrong-digest", str(layer))]
        machine.run("umount", mount)
        flip_bit(path, bit)
        drop_members(machine.home)
    assert fsck(machine, status=0) == []


def drop_members(home):
    """Nothing is materialised."""
    with Store.open(home) as store:
        for path in store.layout.content("members").glob("*/*"):
            path.unlink()
            assert not store.restamp_member(Digest(path.name))


def plant(home, data):
    with Store.open(home) as store, store.lease("plant") as lease:
        with store.ingest(lease) as ingest:
            ingest.write(data)
            digest = ingest.commit_member()
        change = store.change(lease)
        change.add_member(digest, len(data))
        change.commit()
        return digest, store.layout.member(digest)


def test_a_flip_in_a_member_file_is_never_seen_through_a_mount(machine, import_gzip, files):
    """All bytes are right; ``fsck --repair`` drops the file, and is clean from then on."""
    import_gzip("gz", files)
    rng = random.Random(9)
    for _ in range(FLIPS):
        data = rng.choice(list(files.values()))
        digest, path = plant(machine.home, data)
        flip_bit(path, rng.randrange(8 * len(data)))
        assert ("wrong-member-digest", str(digest)) in fsck(machine, status=1)
        mount = machine.mount("mnt", "gz:1")
        for other, expected in files.items():
            assert b"".join(found or b"EIO" for _, found in read_pieces(mount / other, len(expected))) == expected
        machine.run("umount", mount)
        fsck(machine, "--repair", status=1 if path.exists() and path.read_bytes() != data else 0)
        assert fsck(machine, status=0) == []
        drop_members(machine.home)
