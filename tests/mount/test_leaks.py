"""Many mounts, one after the other and at once: nothing is kept of those that are gone, and each takes little.

A short form runs always; with ``KITFS_CAMPAIGN=1`` 10 000 cycles and 200 mounts, and the figures are printed.
"""

import os
import select
import time
from pathlib import Path

import pytest

from kitfs import mounting
from kitfs.calls import PrepareCall

pytestmark = pytest.mark.mount

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
CYCLES = 10_000 if CAMPAIGN else 40
WARM_UP = 100 if CAMPAIGN else 10
MOUNTS = 200 if CAMPAIGN else 12
PRIVATE_MAX_MIB = 10.0
GROWTH_MAX_MIB = 4.0
SETTLE_S = 10.0


def mount_directly(machine, place: Path) -> str:
    """Mount ``myllm:1`` as the command does, in this process; the session."""
    place.mkdir(exist_ok=True)
    call = PrepareCall("myllm:1", str(place))
    with mounting.check_mountpoint(place, machine.home) as mountpoint, machine.client.prepare(call) as prepared:
        before = mounting.find_mounts()
        options = mounting.mount_options("myllm:1", allow_other=True)
        descriptor = mounting.mount_device(place, options)
        try:
            prepared.mount(mounting.get_mounted(mountpoint, before).device, descriptor)
        finally:
            os.close(descriptor)
    return prepared.session


def private_mib(pid: int) -> float:
    """Memory that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def figures(machine) -> dict[str, float]:
    """What the processes that outlive a mount have: descriptors and memory, by name."""
    found: dict[str, float] = {"processes": len(machine.processes())}
    for pid in machine.processes():
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        found[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"{name} MiB"] = private_mib(pid)
    return found


def grown(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What there is more of than before."""
    allowed = {name: GROWTH_MAX_MIB if name.endswith("MiB") else 0 for name in after}
    return [name for name, value in after.items() if value > before.get(name, 0) + allowed[name]]


def settle(machine, before: dict[str, float]) -> dict[str, float]:
    """The figures once nothing has grown: a connection that was just closed has a descriptor for a moment."""
    deadline = time.monotonic() + SETTLE_S
    while grown(before, after := figures(machine)) and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    return after


def test_a_mount_that_is_gone_leaves_nothing(machine):
    """Mounted, read and unmounted again and again: processes, descriptors and memory are what they were."""
    place = machine.folder / "mnt"
    machine.mount("first")
    machine.run("umount", "--all")
    before: dict[str, float] = {}
    for number in range(CYCLES):
        if number == WARM_UP:
            before = figures(machine)
        session = mount_directly(machine, place)
        assert os.listdir(place)
        if number % 10 == 0:
            assert (place / "Kitfile").read_bytes()
        mounting.unmount(place, lazy=True)  # somebody else on the machine may be looking at it
        assert machine.client.wait_ended(session)
    after = settle(machine, before)
    print(f"\n{CYCLES} cycles: before {before}, after {after}")
    assert set(after) == set(before)
    assert grown(before, after) == []
    assert machine.sessions() == []
    assert machine.all_mounts() == []


def test_many_mounts_take_little_memory_and_each_answers(machine):
    """All at once: the memory of a worker that it shares with nobody is below 10 MiB, and every mount can be read."""
    machine.mount("first")
    places = [machine.folder / f"mnt{number}" for number in range(MOUNTS)]
    for place in places:
        mount_directly(machine, place)
    for place in places:
        with (place / "weights.bin").open("rb") as file:
            assert file.read(4096)
    private = [private_mib(state.pid) for state in machine.states()]
    print(f"\n{MOUNTS} mounts: private memory of a worker {min(private):.1f} to {max(private):.1f} MiB")
    assert len(private) == MOUNTS + 1
    assert max(private) <= PRIVATE_MAX_MIB
