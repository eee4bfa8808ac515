"""``kitfs doctor``: what it says of a machine that works, and of one that lacks something."""

import json
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

import kitfs
from kitfs import mounting
from kitfs.cli import checkup
from kitfs.control import FUSE_DEVICE
from kitfs.daemon import abilities

pytestmark = pytest.mark.mount
KERNEL = ("kernel", "passthrough")
"""What only another kernel mends."""


def ask(machine, *, status: int = 0) -> dict[str, dict[str, str]]:
    """What it found, by check."""
    return {one["check"]: one for one in json.loads(machine.run("doctor", "--format", "json", status=status).stdout)}


def test_machine_that_works_is_found_well(machine):
    """Exit code 0, one line for each check, none of which fails; nothing is started."""
    found = ask(machine)
    assert "fail" not in {one["state"] for one in found.values()}
    assert found["daemon"]["detail"].startswith("none runs")
    assert all(one["mend"] for one in found.values() if one["state"] == "warn" and one["check"] not in KERNEL)
    lines = machine.run("doctor").stdout.splitlines()
    assert lines[0].split() == ["CHECK", "STATE", "DETAIL", "WHAT", "MENDS", "IT"]
    assert [line.split()[0] for line in lines[1:]] == list(found)
    assert machine.processes() == []
    machine.mount()
    assert f"process {machine.client.ping().pid}" == ask(machine)["daemon"]["detail"]


def test_store_need_not_be_there(machine, tmp_path):
    """No store yet is well, and it is not made by looking."""
    home = tmp_path / "nothing" / "yet"
    assert "none at" in machine.run("--home", home, "doctor").stdout
    assert not home.exists()


def test_missing_fusermount_is_named_with_the_line_that_mends_it(machine, tmp_path):
    """Exit code 1; -q prints the names of what is not well."""
    machine.environment["PATH"] = str(tmp_path)
    found = ask(machine, status=1)["fusermount3"]
    assert (found["state"], found["mend"]) == ("fail", "sudo apt-get install fuse3")
    assert "fusermount3" in machine.run("doctor", "-q", status=1).stdout.splitlines()


def test_dead_mount_and_what_is_wanted_are_named(machine):
    """The lines that mend them do."""
    place = machine.mount("mnt", "myllm:1", "--wanted")
    machine.kill_all()
    dead = ask(machine, status=1)["mounts"]
    assert dead["state"] == "fail" and str(place) in dead["detail"] and dead["mend"].startswith("kitfs umount ")
    subprocess.run(["umount", str(place)], check=True)
    wanted = ask(machine)["wanted"]
    assert wanted == {
        "check": "wanted",
        "state": "warn",
        "detail": f"not mounted: {place}",
        "mend": "kitfs mount --restore",
    }
    machine.run(*wanted["mend"].split()[1:])
    assert ask(machine)["wanted"]["state"] == "ok"


def test_dead_mount_of_no_session_is_a_warning(machine):
    """One that a killed client left: it may be another store's, so exit code 0; the line clears it."""
    place = machine.folder / "left"
    place.mkdir()
    os.close(mounting.mount_device(place, mounting.mount_options("a:1", allow_other=False)))
    found = ask(machine)["mounts"]
    assert found["state"] == "warn" and str(place) in found["detail"]
    machine.run("umount", place)
    assert str(place) not in ask(machine)["mounts"]["detail"]


def test_slow_read_ahead_is_named(machine):
    """With the line that sets it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = machine.mount()
    (mounted,) = machine.mounts()
    knob = Path("/sys/class/bdi", mounted.device, "read_ahead_kb")
    knob.write_text("128\n")
    found = ask(machine)["read-ahead"]
    assert found["state"] == "warn" and found["mend"].endswith("/read_ahead_kb")
    knob.write_text("1024\n")
    assert str(place) not in ask(machine)["read-ahead"]["detail"]


def test_store_of_a_newer_format_fails(machine):
    """What the store itself says is passed on, and its hint."""
    (machine.home / "version").write_text("kitfs-store 999\n")
    assert ask(machine, status=1)["store"]["state"] == "fail"


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.9.0", "ok"),
        ("7.0-rc1", "ok"),
        ("6.18.44-x", "ok"),
        ("6.1.0-21-amd64", "warn"),
        ("5.15", "warn"),
        ("?", "warn"),
    ],
)
def test_kernel_that_can_not_resend(release, state):
    """A mount survives its worker from Linux 6.9 on."""
    assert checkup.check_kernel(release).state == state


def test_device_that_is_none(tmp_path):
    """An absent one, and a file in its place, fail with different lines."""
    absent = checkup.check_device(tmp_path / "fuse")
    (tmp_path / "fuse").touch()
    taken = checkup.check_device(tmp_path / "fuse")
    assert {absent.state, taken.state} == {"fail"}
    assert "modprobe" in absent.mend and "mknod" in taken.mend


def test_user_is_told_how_others_may_enter(as_nobody):
    """A user without privilege: what root's configuration lacks is a warning, with its line."""
    found = ask(as_nobody)
    expected = ("warn", "echo user_allow_other | sudo tee -a /etc/fuse.conf")
    if found["others"]["state"] != "ok":
        assert (found["others"]["state"], found["others"]["mend"]) == expected
    assert found["fusermount3"]["state"] == "ok"


def test_full_disk_is_named(machine, tmp_path):
    """A store on a full file system: nothing can be stored, exit code 1; the same when it is read-only."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "kitfs-test", small], check=True)
    try:
        machine.environment["KITFS_HOME"] = str(small / "home")
        (small / "home").mkdir(mode=0o700)
        (small / "filler").write_bytes(bytes(1 << 20))
        assert ask(machine)["disk"]["state"] == "ok"
        (small / "filler").write_bytes(bytes((4 << 20) - (64 << 10)))
        full = ask(machine, status=1)["disk"]
        assert full["state"] == "fail" and "kitfs gc" in full["mend"] and str(small) in full["detail"]
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        found = ask(machine, status=1)["disk"]
        assert found["state"] == "fail" and found["mend"] == f"sudo mount -o remount,rw {small}"
        subprocess.run(["sh", "-c", found["mend"].removeprefix("sudo ")], check=True)
        assert "read-only" not in ask(machine, status=1)["disk"]["detail"]
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_sockets_that_nobody_listens_at_are_named(machine):
    """Of a daemon that was killed; the line removes them, and leaves the one of a daemon that runs."""
    machine.run("daemon")
    ours = machine.client.path
    assert ask(machine)["sockets"]["state"] == "ok"
    stale = ours.with_name("it's stale.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    found = ask(machine)["sockets"]
    assert found["state"] == "warn" and "1 socket" in found["detail"]
    subprocess.run(["sh", "-c", found["mend"]], check=True)
    assert not stale.exists() and ours.exists()
    assert ask(machine)["sockets"]["state"] == "ok"


def test_folder_of_the_sockets_that_others_may_write_to_is_named(machine):
    """Another user could put a socket there; the line mends it, and a daemon starts."""
    machine.run("daemon")
    folder = machine.client.path.parent
    machine.run("daemon", "stop")
    folder.chmod(0o777)
    found = ask(machine, status=1)["sockets"]
    subprocess.run(["sh", "-c", found["mend"]], check=True)
    assert ask(machine)["sockets"]["state"] == "ok"
    machine.run("daemon")


def test_file_in_the_sockets_place_is_named(machine):
    """Nothing is connected to, and the line removes it."""
    machine.run("daemon")
    place = machine.client.path
    machine.run("daemon", "stop")
    place.write_text("x")
    found = ask(machine, status=1)["daemon"]
    assert "not a socket" in found["detail"]
    subprocess.run(["sh", "-c", found["mend"].removeprefix("sudo ")], check=True)
    assert ask(machine)["daemon"]["state"] == "ok"


def test_daemon_of_another_version_is_named(machine, tmp_path):
    """A daemon of an older package runs on: ``status`` and ``doctor`` say so, and how it is replaced."""
    old = tmp_path / "old"
    shutil.copytree(Path(kitfs.__file__).parent, old / "kitfs", ignore=shutil.ignore_patterns("__pycache__"))
    place = old / "kitfs" / "__init__.py"
    place.write_text(place.read_text().replace(f'"{kitfs.__version__}"', '"0.0.9"'))
    now = machine.environment.get("PYTHONPATH")
    machine.environment["PYTHONPATH"] = str(old)
    machine.run("daemon")
    machine.environment["PYTHONPATH"] = now or str(Path(kitfs.__file__).parent.parent)
    found = ask(machine)["daemon"]
    assert found["state"] == "warn" and "0.0.9" in found["detail"] and found["mend"] == "kitfs daemon --replace"
    assert "0.0.9, this command is" in machine.run("status").stdout


def test_what_the_daemon_lacks_is_named(machine):
    """A daemon whose metrics can not be served is one that works with less."""
    machine.environment["KITFS_METRICS"] = "/proc/metrics.sock"
    machine.run("daemon")
    found = ask(machine)["daemon"]
    assert found["state"] == "warn" and "/proc/metrics.sock" in found["detail"] and "--metrics" in found["mend"]
    assert "degraded" in machine.run("status").stdout


def test_forced_fallback_is_named(machine):
    """With KITFS_NO_RESEND=1 a mount ends with its worker, whatever the kernel can."""
    machine.environment["KITFS_NO_RESEND"] = "1"
    found = ask(machine)["kernel"]
    assert (found["state"], found["mend"]) == ("warn", "unset KITFS_NO_RESEND")


def test_user_who_may_gain_no_privileges_can_not_mount(as_nobody):
    """fusermount3 is setuid, which no_new_privs makes useless."""
    assert ask(as_nobody)["fusermount3"]["state"] == "ok"
    as_nobody.prefix.append("--no-new-privs")
    found = ask(as_nobody, status=1)["fusermount3"]
    assert found["state"] == "fail" and "no_new_privs" in found["detail"] and found["mend"]
    place = as_nobody.folder / "mnt"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1])", place)
    as_nobody.run("mount", "myllm:1", place, status=9)
    as_nobody.prefix.remove("--no-new-privs")


def test_storage_of_kit_that_can_not_be_read_is_named(as_nobody):
    """Tags that kit moves there would not be noticed; the line mends it."""
    storage = as_nobody.folder / "kitops"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1], 0)", storage)
    as_nobody.environment["KITOPS_HOME"] = str(storage)
    found = ask(as_nobody)["registry"]
    assert found["state"] == "warn" and str(storage) in found["detail"]
    subprocess.run(["sh", "-c", found["mend"].removeprefix("sudo ")], check=True)
    assert ask(as_nobody)["registry"]["state"] == "ok"


def test_device_that_a_user_may_not_open_is_named(as_nobody):
    """As on a machine without udev; root may open it whatever its mode."""
    device = as_nobody.folder / "fuse"
    os.mknod(device, stat.S_IFCHR | 0o600, FUSE_DEVICE)
    script = (
        "import sys, pathlib; from kitfs.cli.checkup import check_device as c; print(*c(pathlib.Path(sys.argv[1])))"
    )
    said = as_nobody.python(script, device)
    assert "fail" in said and "mode 600" in said and f"sudo chmod 666 {device}" in said
    device.chmod(0o666)
    assert " ok " in as_nobody.python(script, device)


def test_passthrough_that_is_switched_off_is_named(machine):
    """Of the daemon, which may have been started otherwise than this command; of this one when none runs."""
    machine.environment.pop("KITFS_NO_PASSTHROUGH", None)
    found = ask(machine)["passthrough"]
    machine.environment["KITFS_NO_PASSTHROUGH"] = "1"
    off = ask(machine)["passthrough"]
    assert off["state"] == "warn" and "KITFS_NO_PASSTHROUGH=1" in off["detail"] and "unset" in off["mend"]
    machine.run("daemon")
    del machine.environment["KITFS_NO_PASSTHROUGH"]
    assert ask(machine)["passthrough"] == off
    assert "off: KITFS_NO_PASSTHROUGH=1" in machine.run("status").stdout
    machine.run("daemon", "stop")
    assert ask(machine)["passthrough"] == found


def test_daemon_without_privilege_lacks_passthrough(machine):
    """One of root that a worker has started has no capabilities: it serves, and says what mends it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not abilities.is_built():
        pytest.skip("the extension is not built")
    machine.environment.pop("KITFS_NO_PASSTHROUGH", None)
    machine.prefix = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"]
    machine.run("daemon")
    machine.prefix = []
    report = json.loads(machine.run("status", "--format", "json").stdout)["daemon"]
    assert "CAP_SYS_ADMIN" in report["passthrough"]
    assert [lack["mend"] for lack in report["degraded"]] == ["kitfs daemon --replace"]
    found = ask(machine)
    assert found["daemon"]["state"] == found["passthrough"]["state"] == "warn"
    assert found["daemon"]["mend"] == found["passthrough"]["mend"] == "kitfs daemon --replace"


def test_programs_of_a_user_that_are_missing_or_have_no_privilege_are_named(as_nobody):
    """fusermount3 that is not setuid can not mount; without fuse-overlayfs nothing is writable, and all else works."""
    folder = as_nobody.folder / "bin"
    as_nobody.python("import os, sys; os.mkdir(sys.argv[1])", folder)
    real = shutil.which("fusermount3")
    as_nobody.python("import shutil, sys; shutil.copy(*sys.argv[1:])", real, folder / "fusermount3")
    path = as_nobody.environment["PATH"]
    as_nobody.prefix[0] = shutil.which("setpriv") or "setpriv"
    as_nobody.environment["PATH"] = str(folder)
    found = ask(as_nobody, status=1)
    assert found["fusermount3"]["state"] == "fail" and "setuid" in found["fusermount3"]["detail"]
    assert (found["overlay"]["state"], found["overlay"]["mend"]) == ("warn", "sudo apt-get install fuse-overlayfs")
    subprocess.run(["sh", "-c", found["fusermount3"]["mend"].replace("sudo ", "")], check=True, env={"PATH": path})
    assert ask(as_nobody)["fusermount3"]["state"] == "ok"


def test_others_who_may_not_enter_are_named_and_the_line_lets_them(as_nobody):
    """A fuse.conf of its own, in a mount namespace of its own, and the line that mends it run there."""
    conf = as_nobody.folder / "fuse.conf"
    conf.write_text("# nothing\n")
    conf.chmod(0o644)
    as_nobody.prefix[:0] = ["unshare", "-m", "sh", "-c", f'mount --bind {conf} /etc/fuse.conf && exec "$@"', "sh"]
    found = ask(as_nobody)["others"]
    assert found["state"] == "warn"
    mend = found["mend"].replace("sudo ", "").replace("/etc/fuse.conf", str(conf))
    subprocess.run(["sh", "-c", mend], check=True, stdout=subprocess.DEVNULL)
    assert ask(as_nobody)["others"]["state"] == "ok"


def test_device_that_is_not_there_is_named(machine):
    """A /dev without it, as in a container: doctor says so and a mount ends with exit code 9."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (machine.folder / "mnt").mkdir()
    machine.run("daemon")
    script = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    machine.prefix = ["unshare", "-m", "sh", "-c", script, "sh"]
    found = ask(machine, status=1)["device"]
    assert (found["state"], found["mend"]) == ("fail", "sudo modprobe fuse")
    assert "fuse" in machine.run("mount", "myllm:1", machine.folder / "mnt", status=9).stderr
    machine.prefix = []


def test_credentials_that_can_not_be_used_are_named(machine, tmp_path):
    """Malformed, open to others, kept with a helper that is not there; no registry and no helper is asked."""
    own = tmp_path / "config" / "kitfs" / "credentials.json"
    own.parent.mkdir(parents=True)
    machine.environment |= {"XDG_CONFIG_HOME": str(own.parent.parent), "DOCKER_CONFIG": str(tmp_path / "docker")}
    machine.environment["HOME"] = str(tmp_path)
    assert ask(machine)["registry"]["detail"].startswith("no credentials")
    own.write_text("{")
    assert str(own) in ask(machine, status=1)["registry"]["detail"]
    own.write_text('{"auths": {"registry.example.com:5000": {"auth": "YTpi"}}}')
    own.chmod(0o644)
    found = ask(machine)["registry"]
    assert (found["state"], found["mend"]) == ("warn", f"chmod 600 {own}")
    subprocess.run(found["mend"].split(), check=True)
    assert "registry.example.com:5000" in ask(machine)["registry"]["detail"]
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"credsStore": "not-there"}')
    found = ask(machine)["registry"]
    assert found["state"] == "warn" and "docker-credential-not-there" in found["mend"]
    helper = tmp_path / "docker-credential-not-there"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    helper.chmod(0o755)
    machine.environment["PATH"] += f":{tmp_path}"
    assert ask(machine)["registry"]["state"] == "ok" and not (tmp_path / "asked").exists()
