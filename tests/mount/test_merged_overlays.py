"""What an upper directory is taken to mean, against the overlays themselves."""

import importlib.util
import os
import random
import shutil
import stat
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kitfs.modelkit.changes import Digests
from kitfs.modelkit.nodes import NodeKind
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.tree import build_tree
from kitfs.modelkit.upper import UpperMalformed
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

_SPEC = importlib.util.spec_from_file_location("overlay_world", Path(__file__).with_name("overlay_world.py"))
overlay_world = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(overlay_world)

pytestmark = [pytest.mark.mount, pytest.mark.root]

NOBODY = 65534
SEEDS = int(os.environ.get("KITFS_TEST_OVERLAYS", "10"))
"""Worlds of each kind."""


@pytest.fixture(autouse=True)
def needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.mark.parametrize(
    "options",
    [
        "index=off,redirect_dir=off,metacopy=off",
        "index=off,redirect_dir=on,metacopy=off",
        "index=off,redirect_dir=on,metacopy=on,xino=on",
        "index=on,redirect_dir=on,metacopy=on",
        "userxattr",
    ],
)
def test_a_merged_tree_is_what_the_kernels_overlay_shows(options, tmp_path):
    """After any changes, names, bytes, modes and changes that the upper directory gives are those of the mount."""
    for seed in range(SEEDS):
        overlay_world.run(overlay_world.OverlayWorld(tmp_path / str(seed), seed, "overlay", options))


@pytest.mark.parametrize("environment", [{}, {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1"}], ids=["devices", "names"])
def test_a_merged_tree_is_what_fuse_overlayfs_shows_a_user(environment, open_device, monkeypatch):
    """The same as a user without privilege; whiteouts are devices, or names, as before Linux 5.8."""
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is absent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = Path(tempfile.mkdtemp(prefix="kitfs-overlays-"))
    os.chown(folder, NOBODY, NOBODY)
    try:
        for seed in range(SEEDS):
            assert run_as_nobody(folder / str(seed), seed) == ""
    finally:
        shutil.rmtree(folder)


def run_as_nobody(folder: Path, seed: int) -> str:
    """One world in a child; what went wrong there."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            overlay_world.run(overlay_world.OverlayWorld(folder, seed, "fuse-overlayfs", ""))
        except BaseException:  # noqa: BLE001  the parent shows it
            os.write(write, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_marks_that_are_made_up_mean_what_they_mean_to_the_kernel(tmp_path):
    """Marks at random are refused by name, or the tree is no larger than both layers, and what the kernel shows.

    A file of the parent that several metacopies show is passed over: the kernel mixes them up, or says ESTALE.
    """
    compared = 0
    for seed in range(8 * SEEDS):
        world = overlay_world.OverlayWorld(tmp_path / str(seed), seed, "overlay", "redirect_dir=on,metacopy=on")
        overlay_world.make_up(world)
        try:
            merged = world.merge()
        except UpperMalformed:
            continue
        entries = list(overlay_world.iter_entries(merged))
        assert len(entries) <= len(world.tree) + 12
        shown = [entry.node.number for entry in entries if entry.node]
        if len(shown) > len(set(shown)):
            continue
        compared += 1
        with world.mounted():
            world.check(world.look())
    assert compared > SEEDS


class MountedWorld(overlay_world.OverlayWorld):
    """The same over a ModelKit, mounted by the command line; its bytes are in layers of a store."""

    kind, options = "overlay", ""

    def __init__(self, machine, store, staging: Path, seed: int) -> None:
        self.machine, self.staging, self.top = machine, staging, machine.folder / "mnt"
        self.top.mkdir(exist_ok=True)
        self.random, self.names, self.log = random.Random(seed), overlay_world.NAMES, []
        self.tree = build_tree(resolve(store, parse_reference("kit:1")), store.open_outline)
        self.find_digest = Digests(store)
        paths = {path: node for path, node in self.tree.iter_paths() if not is_ours(path)}
        with self.mounted():
            self.data_of = {paths[path].number: seen.data for path, seen in self.look().items()}
        self.upper = staging / "upper"
        kinds = {NodeKind.FILE: stat.S_IFREG, NodeKind.DIRECTORY: stat.S_IFDIR}
        self.before = {
            path: overlay_world.Seen(kinds[node.kind] | node.mode, self.data_of[node.number])
            for path, node in paths.items()
        }

    @contextmanager
    def mounted(self) -> Iterator[None]:
        self.machine.run("mount", "kit:1", self.top, "--writable", "--staging", self.staging)
        try:
            yield
        finally:
            self.machine.run("umount", self.top)

    def look(self) -> dict:
        return {path: seen for path, seen in super().look().items() if not is_ours(path)}

    def bytes_of(self, node) -> bytes:
        return self.data_of[node.number]


def is_ours(path: bytes) -> bool:
    """Whether a path is in no child; nothing here is called model but the link."""
    return path == b"model" or path.split(b"/")[0] == b".kitfs"


@pytest.mark.parametrize("form", ["none", "gzip"])
def test_a_merged_tree_is_what_a_writable_mount_shows(form, machine):
    """The same over a ModelKit of some layers, whatever form these have."""
    folder = machine.folder / "src"
    _, seen = overlay_world.make_tree(random.Random(form))
    for path, (mode, data) in {b"w/" + path: one for path, one in seen.items()}.items():
        place = folder / os.fsdecode(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(exist_ok=True) if stat.S_ISDIR(mode) else place.write_bytes(data)
        place.chmod(stat.S_IMODE(mode))
    for name in ("data", "docs"):
        (folder / name).mkdir()
        (folder / name / "x").write_bytes(b"x")
    kitfile = "manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: w}\n"
    (folder / "Kitfile").write_text(kitfile + "datasets: [{name: d, path: data}]\ndocs: [{path: docs}]\n")
    machine.run("pack", folder, "-t", "kit:1", "--compression", form)
    with Store.open(machine.home) as store:
        for seed in range(3):
            overlay_world.run(MountedWorld(machine, store, machine.folder / f"staging-{seed}", seed))
