"""A mount after the index was made anew: split layers packed here and copied, whole and with a damaged member."""

import errno
import os

import pytest

from kitfs.digest import Digest

pytestmark = pytest.mark.mount

STATE = "user.kitfs.state"
FILES = {"weights/a.bin": bytes(range(251)) * 4001, "weights/b.bin": bytes(300_000)}


@pytest.fixture
def pack(machine, tmp_path):
    """Pack the same two files as ``mine:1``."""

    def run():
        context = tmp_path / "context"
        for name, data in FILES.items():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_bytes(data)
        (context / "Kitfile").write_text('manifestVersion: "1.0.0"\nmodel: {name: m, path: weights}\n')
        machine.run("pack", context, "-t", "mine:1")

    return run


def test_split_layers_are_mounted_after_a_rebuild(machine, make_layout, pack):
    """With the index gone and made anew, packed and copied layers read as before, from their own files."""
    pack()
    copied = {"c.bin": bytes(range(241)) * 3000, "d.bin": b"d" * 70_000}
    machine.run("import", "--copy", make_layout("copied", "none", copied))
    (machine.home / "index/data.mdb").unlink()
    machine.run("fsck", "--rebuild-index", status=1)
    machine.run("fsck", "--read-data")
    place = machine.mount("mine", "mine:1")
    for name, data in FILES.items():
        assert os.getxattr(place / name, STATE) == b"native"
        assert (place / name).read_bytes() == data
    other = machine.mount("other", "copied:1")
    for name, data in copied.items():
        assert os.getxattr(other / "weights" / name, STATE) == b"native"
        assert (other / "weights" / name).read_bytes() == data
    machine.run("verify", "mine:1")


def test_damaged_member_is_eio_after_a_rebuild_and_the_others_are_read(machine, pack):
    """The rebuild ends with 6; the damaged file is EIO, the other one right, and packing again heals it."""
    pack()
    digest = Digest.of(FILES["weights/a.bin"])
    path = machine.home / "members/sha256" / digest.hex[:2] / digest.hex
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.write(b"\xff")
    path.chmod(0o444)
    machine.run("fsck", "--rebuild-index", status=6)
    assert "weights/a.bin" in machine.run("verify", "mine:1", status=6).stdout
    place = machine.mount("mnt", "mine:1")
    assert (place / "weights/b.bin").read_bytes() == FILES["weights/b.bin"]
    assert os.getxattr(place / "weights/a.bin", STATE) == b"lazy"
    with pytest.raises(OSError) as caught:
        (place / "weights/a.bin").read_bytes()
    assert caught.value.errno == errno.EIO
    pack()
    assert (place / "weights/a.bin").read_bytes() == FILES["weights/a.bin"]
    machine.run("umount", place)
    machine.run("fsck", "--read-data")
