"""Layers of one pack at once: what they share, how one failure ends all, and how much memory they take."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kitfs.layer.compress import PackCompression
from kitfs.modelkit.pack import pack
from kitfs.modelkit.pack_options import PackOptions
from kitfs.modelkit.walk import FileChanged
from kitfs.oci.manifest import parse_manifest
from kitfs.oci.mediatype import LayerFormat
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

PACK_AND_TELL = (
    "import sys; from pathlib import Path; from kitfs.cli.main import run\n"
    "assert run(['--progress', 'none', '-q', 'pack', sys.argv[1], '--compression', sys.argv[2]]) == 0\n"
    "print(next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line))"
)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """Four layers of 3 MiB."""
    folder = tmp_path / "kit"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(os.urandom(3 << 20))
    codes = "".join(f"  - path: {number}.bin\n" for number in range(1, 4))
    (folder / "Kitfile").write_text(f"model:\n  path: 0.bin\ncode:\n{codes}")
    return folder


class Told:
    """Progress that calls back with the name of a step when bytes of it are done."""

    def __init__(self, advanced, name: str = "") -> None:
        self._advanced, self._name = advanced, name

    def begin(self, name: str, _size: int) -> "Told":
        return Told(self._advanced, name)

    def advance(self, _size: int) -> None:
        self._advanced(self._name)

    def finish(self) -> None:
        """Nothing."""


FORMS = [
    PackOptions(),
    PackOptions(layer_format=LayerFormat.RAW),
    PackOptions(PackCompression.GZIP),
    PackOptions(PackCompression.ZSTD, LayerFormat.RAW),
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_file_that_changes_in_one_layer_ends_all(store: Store, kit: Path, options: PackOptions):
    """The error is the change, whichever layer it is in; nothing is visible and nothing is left under way."""

    def disturb(name: str) -> None:
        if name == "code 2.bin":
            os.truncate(kit / "2.bin", 1 << 20)

    with pytest.raises(FileChanged, match=r"2\.bin"):
        pack(store, kit, None, [parse_reference("a:1")], options=options, progress=Told(disturb))
    assert not list(store.iter_tags()) and not list(store.iter_manifests()) and not list(store.iter_blobs())
    assert not list((store.home / "ingest").iterdir()) and not list((store.home / "leases").iterdir())


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_file_that_changes_while_it_is_compared_is_an_error(store: Store, kit: Path, options: PackOptions):
    """A stored layer is not taken for one whose file grows meanwhile; what is stored stays."""
    first = pack(store, kit, None, [parse_reference("a:1")], options=options, created_s=1)

    def disturb(name: str) -> None:
        assert name.endswith(", as stored")
        if name.startswith("model"):
            with (kit / "0.bin").open("ab") as file:
                file.write(b"more")

    with pytest.raises(FileChanged, match=r"0\.bin"):
        pack(store, kit, None, [parse_reference("a:2")], options=options, progress=Told(disturb))
    assert [(tag, record.manifest) for _, tag, record in store.iter_tags()] == [("1", first)]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_interrupt_ends_all_layers(store: Store, kit: Path, options: PackOptions):
    """Control-C while layers are in work ends the pack at their next pieces, and nothing is left under way."""
    os.truncate(kit / "0.bin", 16 << 30)
    told: list[str] = []

    def interrupt(name: str) -> None:
        if not told:
            os.kill(os.getpid(), signal.SIGINT)
        told.append(name)

    with pytest.raises(KeyboardInterrupt):
        pack(store, kit, None, [parse_reference("a:1")], options=options, progress=Told(interrupt))
    assert len(told) < 8000
    assert not list(store.iter_tags()) and not list(store.iter_manifests()) and not list(store.iter_blobs())
    assert not list((store.home / "ingest").iterdir()) and not list((store.home / "leases").iterdir())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one layer after the other")
def test_layers_are_packed_at_once(store: Store, kit: Path):
    """Two layers are under way at a time: each waits, at its first bytes, for another one's."""
    meeting = threading.Barrier(2)
    met: set[str] = set()

    def meet(name: str) -> None:
        if name not in met:
            met.add(name)
            meeting.wait(timeout=60)

    pack(store, kit, None, [], progress=Told(meet))
    assert len(met) == 4


def test_order_of_layers_is_the_kitfiles(store: Store, kit: Path):
    """Whichever layer is ready first, the manifest has them in order; equal ones are one blob."""
    (kit / "3.bin").write_bytes((kit / "1.bin").read_bytes())
    (kit / "0.bin").write_bytes(b"x" * (8 << 20))
    digest = pack(store, kit, None, [], options=PackOptions(layer_format=LayerFormat.RAW))
    layers = parse_manifest(store.read_blob(digest)).layers
    assert [layer.annotations["org.cncf.model.filepath"] for layer in layers] == [f"{n}.bin" for n in range(4)]
    assert layers[1].digest == layers[3].digest
    assert len({layer.digest for layer in layers}) == 3


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_memory_does_not_grow_with_the_layer(tmp_path: Path, compression: str):
    """A file of 512 MiB is packed with less than a quarter of that in memory, interpreter included."""
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "Kitfile").write_text("model:\n  path: w.bin\n")
    with (folder / "w.bin").open("wb") as file:
        file.truncate(512 << 20)
    command = [sys.executable, "-c", PACK_AND_TELL, str(folder), compression]
    environment = {**os.environ, "KITFS_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 128 << 10
