"""A connection that outlives the processes that serve it."""

import json
import os
import socket
import struct
import subprocess
import sys

import pyfuse3
import pytest
import trio
import trio.testing

from kitfs.fuse import protocol
from kitfs.fuse.handover import Handover, HandoverFailed, run_session
from kitfs.fuse.operations import KitOperations

ROUNDS = 20
READERS = 4
READS_PER_ROUND = 50

# Reads, maps, stats, lists, opens and closes until its standard input ends; drops pages so that the kernel asks again.
READER = """
import array, json, mmap, os, random, select, sys, time
root, seed = sys.argv[1], int(sys.argv[2])
pick = random.Random(seed)
paths = [root + "/" + name for name in ("big.bin", "slow.bin", "views.bin")]
size = int(sys.argv[3])
def content(start, stop):
    words = array.array("Q", range(start // 8, -(-stop // 8)))
    return words.tobytes()[start % 8 : start % 8 + stop - start]
done = wrong = errors = 0
worst = 0.0
kept = os.open(paths[0], os.O_RDONLY)
print("reading", flush=True)
while not select.select([0], [], [], 0)[0]:
    began = time.monotonic()
    try:
        fd = kept if pick.random() < 0.3 else os.open(pick.choice(paths), os.O_RDONLY)
        start = pick.randrange(size)
        stop = min(size, start + pick.randrange(1, 200_000))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if pick.random() < 0.2:
            with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
                found = shared[start:stop]
        else:
            found = os.pread(fd, stop - start, start)
        wrong += found != content(start, stop)
        if pick.random() < 0.05:
            wrong += os.stat(root + f"/many/{pick.randrange(10_000):05d}").st_size
            wrong += len(os.listdir(root)) < 10
        if fd != kept:
            os.close(fd)
    except OSError as error:
        errors += 1
        print(error, file=sys.stderr)
    done += 1
    worst = max(worst, time.monotonic() - began)
print(json.dumps([done, errors, wrong, worst]))
"""


@pytest.mark.mount
@pytest.mark.root
def test_readers_see_nothing_of_killed_workers(mount, sample):
    """SIGKILL of the worker, again and again under readers that open, map and close: 0 errors, 0 wrong bytes."""
    command = [sys.executable, "-c", READER, str(mount.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    readers = [
        subprocess.Popen([*command, str(seed), str(sample.BIG_SIZE)], cwd="/", **pipes) for seed in range(READERS)
    ]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "reading\n"
        for number in range(ROUNDS):
            while mount.stats()["reads"] < READS_PER_ROUND * (number + 1):
                assert all(reader.poll() is None for reader in readers)
            mount.kill_worker()
            mount.start_worker(resend=True)
        outcomes = [reader.communicate("stop", timeout=60) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    for output, complaints in outcomes:
        done, errors, wrong, _ = json.loads(output)
        assert (errors, wrong) == (0, 0), complaints
        assert done >= ROUNDS


@pytest.mark.mount
@pytest.mark.root
def test_request_that_died_with_its_worker_is_answered_by_the_next(mount):
    """A READ that was taken and never answered is sent again and gets its bytes."""
    code = "import sys; print(len(open(sys.argv[1] + '/stuck', 'rb', buffering=0).read(4096)))"
    with mount.start(code) as reader:
        mount.wait_stuck()
        mount.kill_worker()
        mount.start_worker(resend=True, view="freed")
        assert reader.communicate(timeout=60) == ("4096\n", "")


@pytest.mark.mount
@pytest.mark.root
def test_file_that_a_dead_worker_had_opened_goes_on(mount, sample):
    """A descriptor and a map from before the death read on, without being opened again."""
    code = """
    import mmap, os, sys
    fd = os.open(sys.argv[1] + "/big.bin", os.O_RDONLY)
    shared = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    print("open", flush=True)
    sys.stdin.readline()
    print(os.pread(fd, 8, 4096).hex(), shared[-5:].hex())
    """
    command = [sys.executable, "-c", "import textwrap, sys; exec(textwrap.dedent(sys.argv.pop(2)))", str(mount.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, code], cwd="/", **pipes) as reader:
        try:
            assert reader.stdout.readline() == "open\n"
            opens = mount.stats()["opens"]
            mount.kill_worker()
            mount.start_worker(resend=True)
            output, _ = reader.communicate("go\n", timeout=60)
        finally:
            reader.kill()
    content, size = sample.content, sample.BIG_SIZE
    assert output.split() == [content(4096, 4104).hex(), content(size - 5, size).hex()]
    assert mount.stats()["opens"] == opens


class FakeKernel:
    """The kernel's end of a connection, without a kernel: one message a datagram."""

    def __init__(self):
        self._socket, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(10)
        self.device = device.detach()

    def close(self):
        self._socket.close()

    def ask(self, unique, opcode=3, node=1, body=bytes(16)):
        header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0)
        self._socket.send(header + body)

    def hear(self):
        """Length, error and number of an answer."""
        answer = self._socket.recv(1 << 20)
        length, error, unique = struct.unpack_from("=IiQ", answer)
        assert length == len(answer)
        return error, unique


INIT = struct.pack("=IIQQIIIHHIIII", 104, 26, 2, 0, 0, 0, 0, 0, 0, 7, 45, 131072, 0xFFFFFFFF) + bytes(48)


def copy_of_init(raw=INIT):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(raw)
    return theirs.detach()


@pytest.fixture
def kernel():
    """A fake kernel; closed at the end."""
    fake = FakeKernel()
    yield fake
    fake.close()


def masked_init():
    request = protocol.parse_init(INIT)
    return protocol.mask_init(request, protocol.negotiate(request))


async def test_device_takes_the_place_of_the_copy_of_init(kernel, sample, autojump_clock):
    """libfuse's reply goes to the device, then RESEND, and the next request is read from the device."""
    handover = Handover(device=kernel.device, init=copy_of_init(masked_init()), resend=True)
    operations = KitOperations(sample.SampleView(), handover.take)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_session, operations, handover)
        await handover.taken.wait()
        assert kernel.hear() == (7, 0)
        assert kernel.hear() == (0, 2)
        kernel.ask(100)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.hear() == (0, 100)
        pyfuse3.terminate()


class TakesBack(trio.abc.Instrument):
    """Takes one request away after the event loop was told that it is there, before anybody reads it."""

    def __init__(self, place):
        self._place = place
        self.taken_back = 0

    def after_io_wait(self, timeout):
        if not self.taken_back:
            with socket.socket(fileno=os.dup(self._place)) as device:
                self.taken_back = len(device.recv(1 << 20, socket.MSG_DONTWAIT))


async def test_request_taken_back_before_it_is_read_does_not_stop_the_session(kernel, sample):
    """A reader killed between poll and read costs nothing: what is under way is answered, and what comes later."""
    init = copy_of_init(masked_init())
    handover = Handover(device=kernel.device, init=init, resend=False)
    operations = KitOperations(sample.BlockingView(), handover.take)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_session, operations, handover)
        await handover.taken.wait()
        assert kernel.hear() == (0, 2)
        await trio.testing.wait_all_tasks_blocked()
        thief = TakesBack(init)
        trio.lowlevel.add_instrument(thief)
        kernel.ask(100)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(thief)
        assert thief.taken_back > 0
        kernel.ask(102)
        with trio.fail_after(10):
            assert await trio.to_thread.run_sync(kernel.hear) == (0, 102)
        pyfuse3.terminate()


async def test_device_that_can_not_be_taken_over_is_a_named_error(sample):
    """A descriptor that is not open ends the start with HandoverFailed, not with a hang."""
    closed = os.open("/dev/null", os.O_RDONLY)
    os.close(closed)
    handover = Handover(device=closed, init=copy_of_init(masked_init()), resend=False)
    with trio.fail_after(10), pytest.raises(HandoverFailed, match="Bad file descriptor"):
        await run_session(KitOperations(sample.SampleView(), handover.take), handover)
    assert not handover.taken.is_set()
