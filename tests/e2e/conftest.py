"""A store with a daemon of its own, driven through the real command line; nothing of it is left behind.

And a ModelKit large enough to be read in parts, whose model is packed by GNU tar and gzip.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
import zstandard

COMMAND = str(Path(sys.executable).with_name("kitfs"))
TIMEOUT_S = 120


def mountpoints_below(folder: Path) -> list[Path]:
    """Mount points below a folder, from mountinfo; no mount is touched."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split(" ")[4].encode().decode("unicode_escape")
        if path.startswith(f"{folder}/"):
            found.append(Path(path))
    return found


def processes_naming(text: str) -> list[int]:
    """Processes whose command line or environment names a path."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if text.encode() in entry.joinpath("cmdline").read_bytes() + entry.joinpath("environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@dataclass
class Kitfs:
    """The command line on one store."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, *arguments: object, status: int | None = 0, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a verb and check its exit code, unless ``status`` is None."""
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            **options,
        )
        assert status in (None, done.returncode), f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def mount(self, *arguments: object, at: str = "mnt") -> Path:
        """Mount and return the mount point."""
        directory = self.folder / at
        directory.mkdir()
        self.run("mount", *arguments, directory)
        return directory

    def mounts(self) -> list[dict[str, object]]:
        """What ``ps`` says."""
        return json.loads(self.run("ps", "--format", "json").stdout)

    def close(self) -> None:
        """Unmount lazily, stop the daemon, and check that nothing is left."""
        for directory in reversed(mountpoints_below(self.folder)):
            subprocess.run(["fusermount3", "-u", "-z", str(directory)], check=False, timeout=TIMEOUT_S)
        subprocess.run(
            [COMMAND, "daemon", "stop"],
            env={**os.environ, **self.environment},
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert mountpoints_below(self.folder) == []


@pytest.fixture
def kitfs(tmp_path: Path) -> Iterator[Kitfs]:
    """A fresh store, a fresh daemon; both are gone afterwards, and the store is sound."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {
        "KITFS_HOME": str(tmp_path / "home"),
        "KITFS_SOCKET": str(runtime / "kitfs.sock"),
        "KITOPS_HOME": str(tmp_path / "kitops"),
        "XDG_RUNTIME_DIR": str(runtime),
    }
    made = Kitfs(tmp_path, environment)
    try:
        yield made
        if (made.home / "version").exists():
            made.run("fsck")
    finally:
        made.close()


def _copy_writable(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))
    return target


@pytest.fixture
def copy_writable() -> Callable[[Path, Path], Path]:
    """A function that copies a read-only fixture so that the copy may be changed."""
    return _copy_writable


@dataclass
class Weights:
    """A ModelKit with the tag ``weights:1``.

    Attributes:
        source: The model's files as they were before packing.
        layouts: OCI layouts with the model in a layer, by compression: ``gzip``, ``plain``, ``zstd`` (frames of 256
            KiB).
        gzip_layer: The blob of the gzip one.
        tensors: How many the safetensors file and the zip have.
    """

    source: Path
    layouts: dict[str, Path]
    gzip_layer: Path
    tensors: int


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """40 MiB of safetensors, a checkpoint of torch's form of 10 MiB, and 40 small files of 18 MiB together."""
    folder = tmp_path_factory.mktemp("weights")
    source = folder / "model"
    source.mkdir()
    # The bits are bf16's, as weights are; F16 is what numpy can load.
    numbers = numpy.random.default_rng(1).standard_normal(20 << 20, dtype=numpy.float32) * numpy.float32(0.02)
    data = (numbers.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
    tensors = [data[at : at + (3 << 20) + 2] for at in range(0, len(data), (3 << 20) + 2)]
    _write_safetensors(source / "model.safetensors", tensors)
    _write_checkpoint(source / "model.pt", [tensor[: 700 << 10] for tensor in tensors])
    rng = random.Random(2)
    for number in range(40):
        start = rng.randrange(len(data) // 2)
        (source / f"{number:02}.bin").write_bytes(data[start : start + rng.randrange(50_000, 700_000)])
    (source / "17.bin").write_bytes(data[-1_300_001:])
    tar = subprocess.run(
        ["tar", "c", "-C", folder, "--sort=name", "model"], stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    ).stdout
    packed = subprocess.run(["gzip", "-2"], input=tar, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S).stdout
    frames = b"".join(zstandard.compress(tar[at : at + (256 << 10)], 1) for at in range(0, len(tar), 256 << 10))
    layouts = {
        "gzip": _write_layout(folder / "gzip", "tar+gzip", packed),
        "plain": _write_layout(folder / "plain", "tar", tar),
        "zstd": _write_layout(folder / "zstd", "tar+zstd", frames),
    }
    layer = layouts["gzip"] / "blobs/sha256" / hashlib.sha256(packed).hexdigest()
    return Weights(source, layouts, layer, len(tensors))


def _write_safetensors(path: Path, tensors: list[bytes]) -> None:
    header, start = {}, 0
    for number, data in enumerate(tensors):
        offsets = [start, start + len(data)]
        header[f"layer.{number}"] = {"dtype": "F16", "shape": [len(data) // 2], "data_offsets": offsets}
        start += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors))


def _write_checkpoint(path: Path, storages: list[bytes]) -> None:
    """A zip as torch.save writes it: stored, each member's data at a multiple of 64 by padding in its header."""
    members = {"data.pkl": b"pickled" * 100, **{f"data/{number}": data for number, data in enumerate(storages)}}
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            padding = -(stream.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, data)


def _write_layout(layout: Path, form: str, layer: bytes) -> Path:
    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    (layout / "blobs/sha256").mkdir(parents=True)
    kitfile = {"manifestVersion": "1.0.0", "package": {"name": "weights"}, "model": {"path": "model"}}
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(kitfile).encode(), "application/vnd.kitops.modelkit.config.v1+json"),
        "layers": [put(layer, f"application/vnd.kitops.modelkit.model.v1.{form}")],
    }
    descriptor = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "weights:1"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return layout
