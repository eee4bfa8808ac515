"""``kitfs mount``, ``umount``, ``ps`` with a real daemon and real mounts."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.mount


def test_a_mount_starts_the_daemon_and_shows_the_model(machine, weights):
    """One command, nothing set up before: ls works when it returns, and the bytes are right."""
    place = machine.mount()
    assert sorted(os.listdir(place)) == [".kitfs", "Kitfile", "model", "weights.bin"]
    assert (place / "weights.bin").read_bytes() == weights


def test_a_split_layer_is_read_from_its_members(machine, layout, weights):
    """A layer that was copied into the store has no file of its own: its member's file is what the mount reads."""
    machine.run("remove", "myllm:1")
    machine.run("gc")
    machine.run("import", "--copy", layout)
    assert len(list((machine.home / "recipes").rglob("*/*/*"))) == 1
    assert (machine.mount() / "weights.bin").read_bytes() == weights


def test_mount_options_are_those_of_a_safe_read_only_mount(machine):
    """ro, nosuid, nodev, default_permissions, fsname and subtype; allow_other for root."""
    place = machine.mount()
    with open("/proc/self/mountinfo") as file:
        (line,) = [line.split() for line in file if line.split()[4] == str(place)]
    assert {"ro", "nosuid", "nodev"} <= set(line[5].split(","))
    kind, source, options = line[line.index("-") + 1 :]
    assert (kind, source) == ("fuse.kitfs", "myllm:1")
    assert "default_permissions" in options.split(",")
    assert ("allow_other" in options.split(",")) == (os.geteuid() == 0)


def test_other_users_can_be_kept_out(machine):
    """-o noallow_other keeps other users, root's helpers too, out."""
    place = machine.mount("mnt", "myllm:1", "-o", "noallow_other,modes=tar")
    with open("/proc/self/mountinfo") as file:
        (line,) = [line for line in file if line.split()[4] == str(place)]
    assert "allow_other" not in line.split()[-1]


def test_noexec_holds(machine):
    """-o noexec is the kernel's to enforce, so it reaches the mount."""
    place = machine.mount("mnt", "myllm:1", "-o", "noexec")
    with open("/proc/self/mountinfo") as file:
        (line,) = [line.split() for line in file if line.split()[4] == str(place)]
    assert "noexec" in line[5].split(",")


@pytest.mark.root
def test_read_ahead_is_a_mebibyte_where_root_mounts(machine):
    """Four times the speed of sequential reads."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    machine.mount()
    (mounted,) = machine.mounts()
    with open(f"/sys/class/bdi/{mounted.device}/read_ahead_kb") as file:
        assert file.read().strip() == "1024"


def test_two_mounts_have_a_worker_each_and_one_daemon(machine, weights):
    """A kit mounted twice is served twice, by processes of their own."""
    places = [machine.mount("one"), machine.mount("two")]
    states = machine.states()
    assert [state.mountpoint for state in states] == [str(place) for place in places]
    assert len({state.pid for state in states}) == 2
    for place in places:
        assert (place / "weights.bin").read_bytes() == weights
    machine.run("umount", places[0])
    assert (places[1] / "weights.bin").read_bytes() == weights


def test_ps_shows_what_is_mounted(machine, weights):
    """Table, JSON and ids; bytes read are counted."""
    place = machine.mount()
    assert (place / "weights.bin").read_bytes() == weights
    (row,) = json.loads(machine.run("ps", "--format", "json").stdout)
    assert (row["reference"], row["mountpoint"]) == ("myllm:1", str(place))
    assert row["bytes_read"] == len(weights)
    table = machine.run("ps").stdout.splitlines()
    assert table[0].split() == ["REFERENCE", "DIRECTORY", "MODE", "WANTED", "PID", "UPTIME", "READ", "STATE", "NATIVE"]
    assert table[1].split()[:2] == ["myllm:1", str(place)]
    assert machine.run("-q", "ps").stdout.strip() == row["session"]


def test_umount_leaves_nothing_of_a_mount(machine, wait_for_end):
    """When it returns there is no mount, no worker, no session."""
    place = machine.mount()
    (state,) = machine.states()
    machine.run("umount", place)
    assert machine.mounts() == [] and machine.states() == [] and machine.sessions() == []
    with pytest.raises(ProcessLookupError):
        os.kill(state.pid, 0)


@pytest.mark.parametrize("what", ["myllm:1", "localhost/myllm:1", "--all", "relative"])
def test_umount_takes_a_reference_or_all_or_a_relative_path(machine, what, monkeypatch):
    """The mounts that are meant go, whatever they are called by."""
    machine.mount("one")
    machine.mount("two")
    if what == "relative":
        monkeypatch.chdir(machine.folder)
        machine.run("umount", "one/")
        machine.run("umount", "./two")
    else:
        machine.run("umount", what)
    assert machine.mounts() == []


@pytest.mark.parametrize("what", ["myllm:1", "--all"])
def test_umount_leaves_mounts_of_other_stores_alone(machine, layout, what):
    """A reference, and --all, mean what this store's daemon serves; another store may serve the same name."""
    place = machine.mount()
    home = machine.environment["KITFS_HOME"]
    machine.environment["KITFS_HOME"] = f"{home}-2"
    try:
        machine.run("import", layout)
        machine.mount("other")
        machine.run("umount", what)
        machine.run("daemon", "stop")
    finally:
        machine.environment["KITFS_HOME"] = home
    assert [mounted.mountpoint for mounted in machine.mounts()] == [place]
    assert os.listdir(place)


@pytest.mark.root
def test_umount_takes_bind_mounts_along(machine):
    """--all leaves no second view of a mount that would keep it alive."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (machine.folder / "bound").mkdir()
    subprocess.run(["mount", "--bind", str(place), str(machine.folder / "bound")], check=True)
    machine.run("umount", "--all")
    assert machine.mounts() == [] and machine.states() == []


def test_umount_finds_a_mount_through_a_link(machine):
    """A mount point that is reached by another name is the same mount."""
    place = machine.mount()
    (machine.folder / "alias").symlink_to(place)
    (machine.folder / "parent").symlink_to(machine.folder)
    machine.run("umount", machine.folder / "parent" / "mnt")
    machine.mount()
    machine.run("umount", machine.folder / "alias")
    assert machine.mounts() == []


def test_umount_of_what_is_not_mounted_is_not_found(machine):
    """Exit code 3, for a folder, a reference, and with no daemon at all."""
    for what in (machine.folder, "myllm:1", "other:2", "/no/such/place"):
        assert "no ModelKit is mounted" in machine.run("umount", what, status=3).stderr


def test_a_mount_in_use_is_busy_and_lazy_takes_it_away(machine, weights):
    """64 processes read at random: exit code 7 and they go on; --lazy detaches, and what is open stays readable."""
    place = machine.mount()
    script = (
        "import os, random, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); size = os.fstat(fd).st_size\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    os.pread(fd, 4096, random.randrange(size))\n"
        "print(len(os.pread(fd, 1 << 30, 0)), flush=True)\n"
    )
    end = machine.folder / "end"
    command = [sys.executable, "-c", script, str(place / "weights.bin"), str(end)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(64)]
    try:
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        assert "in use" in machine.run("umount", place, status=7).stderr
        assert (place / "Kitfile").exists()
        machine.run("umount", "--lazy", place)
        assert os.listdir(place) == []
        assert len(machine.states()) == 1
        end.touch()
        read = [reader.communicate(timeout=100)[0].strip() for reader in readers]
        assert read == [str(len(weights))] * 64
        assert all(machine.client.wait_ended(state.session) for state in machine.states())
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert machine.sessions() == []


def test_many_mounts_at_once(machine, weights):
    """Eight commands at the same time, no daemon before: eight mounts, one daemon."""
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(machine.mount, [f"m{number}" for number in range(8)]))
    assert len(machine.states()) == 8
    assert all((place / "weights.bin").stat().st_size == len(weights) for place in places)
    machine.run("umount", "--all")
    assert machine.states() == []


def test_the_whole_store_can_be_mounted(machine, weights):
    """--all shows /repository/tag/…, and umount takes it away."""
    place = machine.folder / "all"
    place.mkdir()
    machine.run("mount", "--all", place)
    assert (place / "myllm/1/weights.bin").read_bytes() == weights
    machine.run("umount", place)
    assert machine.mounts() == []


def test_a_reference_that_is_not_there_is_not_found_and_starts_nothing(machine):
    """Exit code 3; no mount, no session, no daemon."""
    place = machine.folder / "mnt"
    place.mkdir()
    assert "other" in machine.run("mount", "other:9", place, status=3).stderr
    assert machine.mounts() == [] and machine.sessions() == [] and machine.processes() == []


def test_with_a_daemon_a_reference_that_is_not_there_is_not_found_too(machine):
    """The same exit code and words when a worker looks; one that is malformed is 1; nothing is left."""
    machine.mount()
    place = machine.folder / "other"
    place.mkdir()
    said = machine.run("mount", "other:9", place, status=3).stderr
    assert "other:9 is not in the store" in said and "kitfs list" in said
    machine.run("mount", "Not//a:reference", place, status=1)
    assert len(machine.mounts()) == 1 and len(machine.sessions()) == 1


def test_with_a_daemon_the_command_imports_nothing_of_the_store(machine):
    """24 ms that a worker has behind it already."""
    place = machine.mount()
    machine.run("umount", place)
    command = machine.command("mount", "myllm:1", place)
    command[1:1] = ["-X", "importtime"]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "kitfs.client" in imported
    outside = {"lmdb", "xxhash", "hashlib", "trio", "kitfs.digest", "kitfs.store", "kitfs.oci", "kitfs.modelkit"}
    assert not imported & outside


@pytest.mark.parametrize("arguments", [("mount",), ("mount", "myllm:1"), ("mount", "--all", "a", "b"),
                                       ("umount",), ("umount", "x", "--all"), ("daemon", "stop", "--foreground"),
                                       ("mount", "-o", "rw", "myllm:1", "/mnt")])  # fmt: skip
def test_bad_usage_is_exit_code_2(machine, arguments):
    """Wrong numbers of words, options that exclude each other, options that there are not."""
    machine.run(*arguments, status=2)


def test_stop_refuses_while_something_is_mounted(machine):
    """Exit code 7 with mounts, 0 without, 8 when there is no daemon."""
    place = machine.mount()
    assert "serves 1 mount" in machine.run("daemon", "stop", status=7).stderr
    machine.run("umount", place)
    machine.run("daemon", "stop")
    machine.run("daemon", "stop", status=8)
