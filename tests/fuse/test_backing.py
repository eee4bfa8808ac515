"""Backing files: the daemon makes known to the kernel what is as it was verified, and nothing else."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs.daemon.abilities import CAP_SYS_ADMIN, has_capability
from kitfs.daemon.backing import BackingFiles
from kitfs.digest import Digest
from kitfs.fuse.opentable import Mode, OpenTable
from kitfs.fuse.orders import BackingCall
from kitfs.store.backing import Backing
from kitfs.store.layout import Layout
from kitfs.store.records import Stamp
from kitfs.store.stamp import stamp_of

CONTENT = b"a member's bytes"
DIGEST = Digest.of(CONTENT)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A store's folder with one member's file, and a secret outside."""
    layout = Layout(tmp_path / "home")
    layout.member(DIGEST).parent.mkdir(parents=True)
    layout.member(DIGEST).write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(CONTENT)
    return layout


@pytest.fixture
def backing(layout: Layout) -> Backing:
    """The member as it was verified."""
    return Backing("members", str(DIGEST), stamp_of(os.stat(layout.member(DIGEST))))


@pytest.fixture
def files(mount, layout: Layout) -> Iterator[BackingFiles]:
    """What the daemon keeps for a mount."""
    if not has_capability(CAP_SYS_ADMIN) or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9):
        pytest.skip("needs CAP_SYS_ADMIN and Linux 6.9")
    files = BackingFiles(layout, mount._device, mount.memory.opens)
    yield files
    files.close()


async def ask(files: BackingFiles, backing: Backing) -> tuple[int, int]:
    """The id and the error that a worker gets."""
    answer = await files.answer(BackingCall(7, backing))
    assert answer.number == 7
    return answer.backing_id, answer.error


async def test_a_trusted_file_gets_an_id_until_it_is_given_back(files, mount, backing):
    """Each question gets an id of its own; one that was given back is forgotten, another's is not touched."""
    first, second = [(await ask(files, backing))[0] for _ in range(2)]
    assert first > 0 < second != first
    assert await files.answer(BackingCall(give_back=first)) is None
    assert await files.answer(BackingCall(give_back=first)) is None
    assert await files.answer(BackingCall(give_back=4711)) is None
    assert files.sweep() == 1


async def test_ids_that_no_open_file_uses_are_swept(files, mount, backing):
    """What a dead worker had asked for and not used is given back before the next one begins, and nothing else."""
    used, _ = await ask(files, backing)
    await ask(files, backing)
    OpenTable(mount.memory.opens).begin(3, Mode(used, backing.stamp.inode))
    assert [files.sweep(), files.sweep()] == [1, 0]


async def test_a_daemon_that_begins_sweeps_what_another_has_left(files, mount, layout, backing):
    """The list of ids is in the session's memory."""
    await ask(files, backing)
    files.close()
    other = BackingFiles(layout, mount._device, mount.memory.opens)
    assert [other.sweep(), other.sweep()] == [1, 0]
    other.close()


async def test_a_changed_file_gets_no_id(files, layout, backing):
    """The daemon itself compares the stamp, of the very file that it hands to the kernel."""
    os.chmod(layout.member(DIGEST), 0o400)
    assert await ask(files, backing) == (0, errno.ESTALE)


async def test_a_file_that_is_not_there_or_no_plain_file_gets_no_id(files, tmp_path, layout, backing):
    """A symlink in its place is not followed, wherever it leads."""
    member = layout.member(DIGEST)
    member.unlink()
    assert await ask(files, backing) == (0, errno.ENOENT)
    member.symlink_to(tmp_path / "secret")
    secret = stamp_of(os.stat(tmp_path / "secret"))
    assert (await ask(files, Backing("members", str(DIGEST), secret)))[0] == 0


@pytest.mark.parametrize("digest", ["sha256:../../secret", "secret", "", f"sha256:{'A' * 64}"])
async def test_what_is_no_digest_names_no_file(files, tmp_path, digest):
    """A worker that was taken over can not have files outside the store passed through."""
    assert await ask(files, Backing("blobs", digest, Stamp(0, 0, 0, 0, 0))) == (0, errno.EINVAL)


async def test_a_session_that_has_ended_makes_nothing_known(files, mount, backing):
    """An answer that comes after its session's end is none."""
    files.close()
    assert await files.answer(BackingCall(1, backing)) is None
