"""A layer of very many small files is mounted, listed, walked and read; a worker's successor shows the same inodes.

10 000 or 20 000 files, half in folders and half in one; with ``KITFS_CAMPAIGN=1`` also 200 000 and 1 000 000, in gzip.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
COUNTS = [20_000, 200_000, 1_000_000] if CAMPAIGN else [10_000]
TEXT = random.Random(7).randbytes(3000).hex().encode()
SPAN_SIZE = 512 << 10
RSS_MAX_KIB = 190 << 10
"""Of a worker after everything was read: 64 MiB of it are decoded spans."""


def path_of(number: int, count: int) -> str:
    """Half of the files lie in folders of 1000, whose files are not in order; the others in one."""
    if number % 2:
        return f"data/flat/{number:07}.txt"
    return f"data/{number * 1000 // count // 2:04}/{number ^ 0b10100:07}.txt"


def data_of(number: int) -> bytes:
    """Each file's bytes differ from every other's."""
    return b"%d\n" % number + TEXT[: number * 7919 % 2500]


def write_layer(path: Path, count: int, *, is_gzip: bool) -> None:
    """A tar of ``count`` files; directories are only implied."""
    block = tarfile.BLOCKSIZE
    order = sorted(range(count), key=lambda number: path_of(number, count).rpartition("/")[0])
    with gzip.open(path, "wb", compresslevel=1) if is_gzip else path.open("wb") as stream:
        for number in order:
            data = data_of(number)
            member = tarfile.TarInfo(path_of(number, count))
            member.size = len(data)
            stream.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % block))
        stream.write(bytes(2 * block))


def make_layout(folder: Path, count: int, *, is_gzip: bool) -> Path:
    """An OCI layout with one ModelKit, whose dataset is such a layer."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(path: Path, media_type: str) -> dict[str, object]:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        placed = path.rename(blobs / digest)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": placed.stat().st_size}

    def put_json(value: object, media_type: str) -> dict[str, object]:
        path = folder / "json"
        path.write_text(json.dumps(value))
        return put(path, media_type)

    write_layer(folder / "layer", count, is_gzip=is_gzip)
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "many"}, "datasets": [{"name": "d", "path": "data"}]}
    config = put_json(kitfile, "application/vnd.kitops.modelkit.config.v1+json")
    layer = put(folder / "layer", f"application/vnd.kitops.modelkit.dataset.v1.tar{'+gzip' * is_gzip}")
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = put_json(
        {"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer]}, manifest_type
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "many:1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


@pytest.fixture(scope="module")
def make_once(tmp_path_factory):
    """``make_once(count, is_gzip)``: the layout, made by the first test that wants it."""
    folder = tmp_path_factory.mktemp("many")

    @functools.cache
    def make(count: int, is_gzip: bool) -> Path:
        return make_layout(folder / f"{count}{is_gzip}", count, is_gzip=is_gzip)

    return make


@pytest.fixture
def mount_many(machine, make_once):
    """``mount_many(count, is_gzip)``: import such a kit and mount it; the folder with its files."""

    def mount(count: int, is_gzip: bool) -> Path:
        machine.run("import", make_once(count, is_gzip))
        return machine.mount("mnt", "localhost/many:1") / "data"

    return mount


def worker_of(machine) -> int:
    """The pid of the only mount's worker, once there is one that answers."""
    while True:
        (state,) = machine.states()
        if state.pid and state.state != "starting":
            return state.pid


def rss_kib(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


@pytest.mark.parametrize("is_gzip", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_every_file_is_listed_and_read(machine, mount_many, count, is_gzip):
    """find and ls list each path and size, tar reads each file's bytes from spans decoded once, memory is bounded."""
    folder = mount_many(count, is_gzip)
    small = rss_kib(worker_of(machine))
    found = subprocess.run(["find", folder, "-type", "f", "-printf", "%P %s\n"], capture_output=True, check=True)
    expected = {f"{path_of(number, count)[5:]} {len(data_of(number))}" for number in range(count)}
    assert sorted(found.stdout.decode().splitlines()) == sorted(expected)
    listed = subprocess.run(["ls", "-l", folder / "flat"], capture_output=True, check=True)
    assert len(listed.stdout.splitlines()) == count // 2 + 1
    listing_rss = rss_kib(worker_of(machine))
    assert listing_rss < small + (20 << 10)
    with subprocess.Popen(["tar", "c", "-C", folder.parent, "data"], stdout=subprocess.PIPE) as packing:
        seen = 0
        with tarfile.open(fileobj=packing.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile():
                    data = archive.extractfile(member).read()
                    number = int(data.partition(b"\n")[0])
                    assert (member.name, data) == (path_of(number, count), data_of(number))
                    seen += 1
                archive.members = []  # tarfile keeps them all
    assert packing.returncode == 0 and seen == count
    size_decoded = sum(512 + len(data_of(number)) + -len(data_of(number)) % 512 for number in range(count))
    assert machine.states()[0].spans_decoded <= is_gzip * (1.05 * size_decoded / SPAN_SIZE + 2)
    assert rss_kib(worker_of(machine)) < RSS_MAX_KIB


def test_a_directory_is_read_on_from_where_it_was_left(mount_many):
    """Four readers list the flat folder at once, one seeks back and forth in it: each sees every name once."""
    folder = mount_many(20_000, True) / "flat"
    expected = sorted(os.path.basename(path_of(number, 20_000)) for number in range(1, 20_000, 2))
    listings: list[list[str]] = []
    readers = [threading.Thread(target=lambda: listings.append(os.listdir(folder))) for _ in range(4)]
    for reader in readers:
        reader.start()
    command = ["perl", "-e", SEEK, folder]
    sought = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for reader in readers:
        reader.join()
    assert [sorted(listing) for listing in listings] == [expected] * 4
    assert sorted(name for name in sought if name not in (".", "..")) == expected


SEEK = """
opendir(my $folder, $ARGV[0]) or die;
my @names; my @places;
while (1) {
    my $place = telldir($folder); my $name = readdir($folder);
    last unless defined $name;
    push @names, $name; push @places, $place;
}
for (my $n = 0; $n < @names; $n += 997) {
    my $at = $n * 7 % @names;
    seekdir($folder, $places[$at]);
    my $name = readdir($folder);
    die "$at: $name is not $names[$at]" if $name ne $names[$at];
}
print "$_\\n" for @names;
"""


def test_a_successor_shows_the_same_inodes(machine, mount_many, wait_for_end):
    """After the worker's death every path has its inode, and a listing that was under way goes on."""
    folder = mount_many(20_000, True)
    before = {entry.path: entry.inode() for name in os.listdir(folder) for entry in os.scandir(folder / name)}
    with contextlib.closing(os.scandir(folder / "flat")) as entries:
        names = [next(entries).name for _ in range(10)]
        pid = worker_of(machine)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        names += [entry.name for entry in entries]
    assert len(set(names)) == len(names) == 10_000
    machine.run("umount", folder.parent)
    machine.mount("mnt", "localhost/many:1")
    after = {entry.path: entry.inode() for name in os.listdir(folder) for entry in os.scandir(folder / name)}
    assert len(before) == 20_000 and after == before
