"""What an upper directory is taken to mean, against the overlays themselves."""

import importlib.util
import os
import shutil
import tempfile
import traceback
from pathlib import Path

import pytest

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
        overlay_world.run(tmp_path / str(seed), seed, "overlay", options)


def test_a_merged_tree_is_what_fuse_overlayfs_shows_a_user(open_device):
    """The same as a user without privilege."""
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is absent")
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
            overlay_world.run(folder, seed, "fuse-overlayfs", "")
        except BaseException:  # noqa: BLE001  the parent shows it
            os.write(write, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said
