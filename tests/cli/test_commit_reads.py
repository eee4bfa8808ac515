"""Which files of the store a commit opens or reads, as the kernel tells: none of a layer that is unchanged."""

import ctypes
import os
import random
import struct

import pytest

from kitfs.digest import Digest
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

RNG = random.Random(5)
FILES = {
    "weights/a.bin": RNG.randbytes(300_000),
    "weights/b.bin": RNG.randbytes(2_000_000),
    "data/rows.jsonl": RNG.randbytes(200_000),
    "docs/README.md": b"before\n",
}
TAR = {"model": "weights", "datasets": "data", "docs": "docs"}
RAW = {"model": "weights/b.bin", "datasets": "data/rows.jsonl", "docs": "docs/README.md"}
FORMS = {
    "split": (TAR, []),
    "gzip": (TAR, ["--compression", "gzip"]),
    "zstd": (TAR, ["--compression", "zstd"]),
    "raw": (RAW, ["--layer-format", "raw", "--use-model-pack"]),
}

_LIBC = ctypes.CDLL(None, use_errno=True)
IN_ACCESS, IN_MODIFY, IN_OPEN = 0x1, 0x2, 0x20  # inotify(7)
_EVENT = struct.Struct("iIII")


class Watch:
    """Names of files that anybody, in any process, opens, reads or writes in some directories."""

    def __init__(self, directories):
        self.fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        for directory in directories:
            watched = _LIBC.inotify_add_watch(self.fd, os.fsencode(directory), IN_ACCESS | IN_MODIFY | IN_OPEN)
            assert watched >= 0, os.strerror(ctypes.get_errno())
        assert watched > 500  # each has 256

    def take(self):
        """The names since the last call."""
        names = set()
        while True:
            try:
                events = os.read(self.fd, 1 << 20)
            except BlockingIOError:
                return names
            at = 0
            while at < len(events):
                number, _, _, size = _EVENT.unpack_from(events, at)
                assert number >= 0, "the kernel dropped events"
                at += _EVENT.size + size
                names.add(events[at - size : at].rstrip(b"\0").decode())


@pytest.fixture
def watch(kitfs, tmp_path):
    """Watches all that the store keeps."""
    Store.open(tmp_path / "home").close()
    watch = Watch(path for kind in ("blobs", "recipes", "members") for path in (tmp_path / "home" / kind).glob("*/*"))
    yield watch
    os.close(watch.fd)


def pack(kitfs, folder, form):
    """A ModelKit ``myllm:1`` of three layers in some form."""
    entries, options = FORMS[form]
    for name, data in FILES.items():
        if any(name.startswith(path) for path in entries.values()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    lists = "".join(f"{kind}:\n- path: {path}\n" for kind, path in entries.items() if kind != "model")
    (folder / "Kitfile").write_text(f"manifestVersion: 1.0.0\nmodel:\n  path: {entries['model']}\n{lists}")
    assert kitfs("pack", folder, "-t", "myllm:1", *options, "--progress", "none").code == 0


def stage(tmp_path, changed):
    """A staging directory over the ModelKit, not mounted, with files in it."""
    with Store.open(tmp_path / "home") as store:
        kit = resolve(store, parse_reference("myllm:1"))
        staging = create_staging(store, tmp_path / "work", kit, overlay="overlay", uid=os.getuid(), gid=os.getgid())
    for name, data in changed.items():
        (staging.upper / name).parent.mkdir(parents=True, exist_ok=True)
        (staging.upper / name).write_bytes(data)
    return staging.path


def layer_files(tmp_path, count):
    """Names in the store of the first layers of the ModelKit: blob or recipe, and members."""
    with Store.open(tmp_path / "home") as store:
        layers = resolve(store, parse_reference("myllm:1")).kits[0].manifest.layers[:count]
        members = (member for layer in layers for member in store.get_toc(layer.digest) if member.digest)
        return {layer.digest.hex for layer in layers} | {Digest.from_raw(member.digest).hex for member in members}


@pytest.mark.parametrize("form", FORMS)
def test_no_file_of_an_unchanged_layer_is_opened(kitfs, tmp_path, watch, form):
    """A commit opens no blob, recipe or member of a layer without a change; whoever reads it is seen."""
    pack(kitfs, tmp_path / "folder", form)
    unchanged = layer_files(tmp_path, 2)
    work = stage(tmp_path, {"docs/README.md": b"after\n"})
    watch.take()
    assert kitfs("commit", work, "myllm:2", "--progress", "none").code == 0
    seen = watch.take()
    assert seen and not seen & unchanged
    assert kitfs("verify", "myllm:2", "--progress", "none").code == 0
    read = watch.take() & unchanged
    assert read == {name for name in unchanged if any((tmp_path / "home").glob(f"*/sha256/*/{name}"))}
    assert len(read) >= 2


@pytest.mark.parametrize("form", ["split", "gzip", "zstd"])
def test_files_of_a_changed_layer_are_read(kitfs, tmp_path, watch, form):
    """Of a layer with one changed file the others are read from the store, and nothing of its neighbours."""
    pack(kitfs, tmp_path / "folder", form)
    changed = layer_files(tmp_path, 1)
    neighbours = layer_files(tmp_path, 3) - changed
    work = stage(tmp_path, {"weights/a.bin": RNG.randbytes(100_000)})
    watch.take()
    assert kitfs("commit", work, "myllm:2", "--progress", "none").code == 0
    seen = watch.take()
    assert seen & changed and not seen & neighbours


def test_nothing_is_read_when_nothing_changed(kitfs, tmp_path, watch):
    """A commit of an unchanged tree opens nothing of any layer."""
    pack(kitfs, tmp_path / "folder", "split")
    layers = layer_files(tmp_path, 3)
    work = stage(tmp_path, {})
    watch.take()
    assert "Nothing to commit" in kitfs("commit", work, "myllm:2").out
    assert not watch.take() & layers
