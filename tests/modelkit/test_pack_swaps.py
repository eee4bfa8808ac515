"""Packing a tree whose names turn into symbolic links, and back, all the time: nothing outside of it is ever packed."""

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.archive.tar_toc import MemberKind
from kitfs.modelkit.entries import PathUnreadable
from kitfs.modelkit.ignore import IgnoreRules
from kitfs.modelkit.pack import pack
from kitfs.modelkit.walk import FileChanged, PathsUnpackable, iter_entries
from kitfs.oci.manifest import parse_manifest
from kitfs.store.fsck import check
from kitfs.store.store import Store

IS_CAMPAIGN = bool(os.environ.get("KITFS_CAMPAIGN"))
WALKS = 20_000 if IS_CAMPAIGN else 400
PACKS = 3_000 if IS_CAMPAIGN else 30

SECRET = b"SECRET"
LAYERS = ("m", "m/mid/deep", "code/file")
KITFILE = "model:\n  path: m\n  parts:\n    - path: m/mid/deep\ncode:\n  - path: code/file\n"

SWAPPED = ("m/dir", "m/mid", "m/file", "code", "code/file", "m")

EXCHANGE = """
import ctypes, itertools, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
pairs = [line.encode() for line in sys.argv[1:]]
for pair in itertools.cycle(pairs):
    libc.renameat2(-100, pair, -100, pair + b".link", 2)  # AT_FDCWD, RENAME_EXCHANGE
    libc.renameat2(-100, pair, -100, pair + b".link", 2)
    if pair is pairs[-1] and select.select([sys.stdin], [], [], 0)[0]:
        break
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with the same names inside and outside; each swapped name has a link to its double beside it."""
    for root, data in (("kit", b"inside"), ("outside", SECRET)):
        for name in ("m/dir/a", "m/mid/deep/w", "m/file", "code/file"):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for name in ("m/dir/only", "m/mid/deep/only", "m/only"):
        (tmp_path / "outside" / name).write_bytes(SECRET)
    for name in SWAPPED:
        (tmp_path / "kit" / f"{name}.link").symlink_to(tmp_path / "outside" / name)
    (tmp_path / "kit/Kitfile").write_text(KITFILE)
    return tmp_path / "kit"


@pytest.fixture
def swapping(tree: Path) -> Iterator[Path]:
    """The tree while another process exchanges names with links."""
    arguments = [str(tree / name) for name in SWAPPED]
    swapper = subprocess.Popen([sys.executable, "-c", EXCHANGE, *arguments], stdin=subprocess.PIPE)
    try:
        yield tree
        assert swapper.poll() is None
    finally:
        swapper.communicate(b"stop", timeout=60)
    assert swapper.returncode == 0


def read_layer(context_fd: int, layer: str, told: Counter[str]) -> list[tuple[str, bytes]]:
    """What a layer would hold, read as pack reads it."""
    rules = IgnoreRules(["**/*.link"], LAYERS).layer(layer)
    found = []
    for entry in iter_entries(context_fd, layer, rules, lambda *_: told.update(["passed over"])):
        data = b""
        if entry.kind is MemberKind.FILE:
            with entry.open(lambda _size: None) as opened:
                data = b"".join(opened.pieces)[:100]
        found.append((entry.path, data))
    return found


class Moments:
    """Counts system calls that look at names, and swaps one name for its link before the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self._path = path
        self._left = -1
        for name in ("open", "stat", "listdir"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self._left -= 1
            if self._left == 0:
                self.swap()
            return call(*arguments, **options)

        return counted

    def swap(self) -> None:
        """Exchange the name and its link."""
        link = self._path.with_name(self._path.name + ".link")
        aside = self._path.with_name("aside.link")
        self._path.rename(aside)
        link.rename(self._path)
        aside.rename(link)

    def arm(self, number: int) -> None:
        """Swap before the ``number``-th call from now."""
        self._left = number

    def disarm(self) -> bool:
        """Put the name back; whether it was swapped."""
        swapped = self._left <= 0
        self._left = -1
        if swapped:
            self.swap()
        return swapped


@pytest.mark.parametrize("name", SWAPPED)
def test_name_swapped_at_any_moment_of_a_walk_leads_nowhere(tree: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """A name that becomes a link before any of the calls that look at names gives no name or byte from behind it."""
    context_fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    moments = Moments(monkeypatch, tree / name)
    tried = 0
    for layer in LAYERS:
        for number in range(1, 200):
            moments.arm(number)
            with contextlib.suppress(PathUnreadable):
                found = read_layer(context_fd, layer, Counter())
                assert not [path for path, data in found if SECRET in data or path.endswith("only")], number
            if not moments.disarm():
                break
            tried += 1
    os.close(context_fd)
    assert tried > 20


def test_walk_through_swapped_names_stays_inside(swapping: Path):
    """Whatever a name is at the moment, no name and no byte from behind a link is read."""
    told: Counter[str] = Counter()
    context_fd = os.open(swapping, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(WALKS):
            try:
                found = read_layer(context_fd, LAYERS[number % 3], told)
            except PathUnreadable:
                told["refused"] += 1
                continue
            assert not [path for path, data in found if SECRET in data or path.endswith("only")]
            told["read"] += 1
    finally:
        os.close(context_fd)
    print(f"{WALKS} walks: {dict(told)}")
    assert told["refused"] and told["read"]


def test_pack_of_swapped_names_holds_nothing_from_outside(swapping: Path, store_home: Path):
    """Packs succeed or are refused; no member of any layer has a byte from behind a link."""
    (swapping / ".kitignore").write_text("**/*.link\n")
    told: Counter[str] = Counter()
    with Store.open(store_home) as store:
        for _ in range(PACKS):
            try:
                manifest = parse_manifest(store.read_blob(pack(store, swapping, None, [])))
            except (PathUnreadable, PathsUnpackable, FileChanged):
                told["refused"] += 1
                continue
            told["packed"] += 1
            for layer in manifest.layers:
                assert SECRET not in store.read_blob(layer.digest)
                assert not [member.path for member in store.get_toc(layer.digest) if member.path.endswith(b"only")]
        assert check(store).problems == []
    print(f"{PACKS} packs: {dict(told)}")
    assert told["refused"]
