"""The units under a real systemd, in a machine of its own: boot, mounts, restarts under load, kills, a reboot."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

OPERATING = Path(__file__).parent.parent.parent / "docs" / "operating.md"

pytestmark = pytest.mark.system

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WEIGHTS = "/srv/kit/weights.bin"
CAP_SYS_ADMIN = 1 << 21
USER = "1234"


def states(booted) -> list[dict[str, Any]]:
    """What ``kitfs ps`` says."""
    return json.loads(booted.run("kitfs", "ps", "--format", "json"))


def shown(booted) -> set[str]:
    """Where ``kitfs ps`` says that something is served."""
    return {state["mountpoint"] for state in states(booted) if state["pid"]}


def loopback_drop_in() -> str:
    """What the page on operating says that the service needs to serve metrics at a port."""
    found = re.search(r"^\[Service\]\n(?:\w+=.*\n)*PrivateNetwork=no\n(?:\w+=.*\n)*", OPERATING.read_text(), flags=re.M)
    assert found is not None
    return found[0]


def check_shown(booted, *places: str) -> None:
    """Everybody can read what is mounted, and it is what it must be."""
    for place in places:
        booted.run(*NOBODY, "cmp", WEIGHTS, f"{place}/weights.bin")


def test_mount_unit_mounts_for_everybody_and_unmounts(booted):
    """``kitfs-mount@`` mounts what its file names where everybody sees it; stopping it unmounts."""
    (booted.root / "etc/kitfs/mounts/mnt-unit.conf").write_text("REFERENCE=plain:1\nOPTIONS=nometa\n")
    booted.run("systemctl", "start", "kitfs-mount@mnt-unit")
    check_shown(booted, "/mnt/unit")
    assert ".kitfs" not in booted.run("ls", "-A", "/mnt/unit")
    booted.run("systemctl", "restart", "kitfs.socket", "kitfs.service")
    check_shown(booted, "/mnt/unit")
    booted.run("systemctl", "stop", "kitfs-mount@mnt-unit")
    booted.run("findmnt", "/mnt/unit", status=1)


def test_restart_of_the_service_is_not_noticed_under_load(booted, place):
    """Readers that verify all the time go on over restarts."""
    mounts = [place("a"), place("b", "packed:1")]
    with booted.reading(*mounts) as readers:
        for _ in range(3):
            daemon = booted.main_pid()
            booted.run("systemctl", "restart", "kitfs.service")
            assert booted.main_pid() not in (0, daemon)
            readers.next()


def test_killed_daemon_is_not_noticed_under_load(booted, place):
    """systemd starts another each time, however often; readers go on."""
    mounts = [place("a"), place("b", "packed:1")]
    with booted.reading(*mounts) as readers:
        for _ in range(4):
            daemon = booted.main_pid()
            booted.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "kitfs.service")
            booted.run("kitfs", "ps")
            assert booted.main_pid() not in (0, daemon)
            readers.next()


def test_stopped_daemon_is_replaced_by_the_watchdog(booted, place):
    """A daemon that hangs is killed and replaced by systemd; readers do not notice."""
    with booted.service("[Service]\nWatchdogSec=1\n"), booted.reading(place("a")) as readers:
        daemon = booted.main_pid()
        booted.run("kill", "-STOP", daemon)
        booted.run("kitfs", "ps")
        assert booted.main_pid() not in (0, daemon)
        assert "Watchdog timeout" in booted.journal("kitfs.service")
        readers.next()


def test_dead_mount_that_is_wanted_is_made_again(booted, place):
    """Its worker died while the service was stopped, so nobody has kept it: it is mounted when the service starts."""
    mount = place("wanted", "packed:1", "--wanted")
    (state,) = [one for one in states(booted) if one["mountpoint"] == mount]
    booted.run("systemctl", "stop", "kitfs.socket", "kitfs.service")
    booted.run("kill", "-KILL", state["pid"])
    booted.run("systemctl", "start", "kitfs.socket", "kitfs.service", "kitfs-restore.service")
    check_shown(booted, mount)
    assert mount in shown(booted)


def test_stopped_service_is_in_nobodys_way(booted, place):
    """Mounts are served while it is stopped; when it runs again they are unmounted and mounted anew."""
    mount = place("a")
    booted.run("systemctl", "stop", "kitfs.socket", "kitfs.service")
    assert booted.main_pid() == 0
    check_shown(booted, mount)
    booted.run("systemctl", "start", "kitfs.service")
    booted.run("kitfs", "umount", mount)
    booted.run("kitfs", "mount", "packed:1", mount)
    check_shown(booted, mount)


def test_service_takes_over_from_a_command_s_daemon(booted, place):
    """Units that are started where a command had started a daemon: its mounts go on, and the service serves."""
    booted.run("systemctl", "stop", "kitfs.socket", "kitfs.service")
    mount = place("a")
    assert booted.main_pid() == 0 and mount in shown(booted)
    with booted.reading(mount) as readers:
        booted.run("systemctl", "start", "kitfs.socket", "kitfs.service")
        assert booted.main_pid() != 0
        readers.next()
    place("b")


def test_socket_starts_the_service(booted):
    """A command that finds no daemon running is answered by one that systemd starts for it."""
    daemon = booted.main_pid()
    booted.run("systemctl", "stop", "kitfs.service")
    booted.run("kitfs", "ps")
    assert booted.main_pid() not in (0, daemon)


def test_daemon_and_workers_can_do_little(booted, place):
    """The sandbox is in force: no file system or network of the machine's, one capability, and none for a worker."""
    mount, daemon = place("a"), booted.main_pid()
    (state,) = [one for one in states(booted) if one["mountpoint"] == mount]
    for pid, capabilities in ((daemon, CAP_SYS_ADMIN), (state["pid"], 0)):
        status = dict(line.split(":\t", 1) for line in booted.run("cat", f"/proc/{pid}/status").splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["CapBnd"], 16) == CAP_SYS_ADMIN
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == capabilities
        for kind in ("mnt", "net", "ipc"):
            assert booted.run("readlink", f"/proc/{pid}/ns/{kind}") != booted.run("readlink", f"/proc/1/ns/{kind}")


def test_sandbox_lets_the_kernel_read_members_by_itself(booted, place):
    """The daemon's one privileged call is allowed: what is opened is passed through, and no worker reads it."""
    if booted.run("sh", "-c", "ls /opt/kitfs/lib/python3.*/site-packages/kitfs/fuse/*.so 2>/dev/null || true") == "":
        pytest.skip("the extension could not be built")
    mount = place("a")
    held = booted.enter("sh", "-c", f"exec 3<{mount}/weights.bin && echo open && read line")
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        check_shown(booted, mount)
        (state,) = [one for one in states(booted) if one["mountpoint"] == mount]
        process.communicate(b"\n")
    assert (state["passed_through"], state["passthrough"], state["bytes_read"]) == (1, "", 0)


def test_metrics_are_served_from_the_sandbox(booted):
    """At a socket below /run/kitfs; at a loopback port with the settings that the page on operating has for it."""
    for address, drop_in, words in (
        ("/run/kitfs/metrics.sock", "", ["--unix-socket", "/run/kitfs/metrics.sock", "http://kitfs/metrics"]),
        ("127.0.0.1:9464", loopback_drop_in(), ["http://127.0.0.1:9464/metrics"]),
    ):
        with booted.service(f"{drop_in}\n[Service]\nEnvironment=KITFS_METRICS={address}\n"):
            assert "kitfs_" in booted.run("curl", "--silent", "--show-error", *words)


@pytest.mark.parametrize("name", ["kitfs-gc", "kitfs-scrub"])
def test_timers_run_their_services(booted, place, name):
    """The timer waits for its time; its service, hardened, does what it is for, also while something is mounted."""
    place("a")
    assert booted.show(f"{name}.timer", "ActiveState") == "active"
    assert booted.show(f"{name}.timer", "NextElapseUSecRealtime") != ""
    booted.run("systemctl", "start", f"{name}.service")
    assert booted.show(f"{name}.service", "Result") == "success"
    assert booted.show(f"{name}.service", "ExecMainStatus") == "0"
    assert booted.show(f"{name}.service", "ConditionResult") == "yes"


def test_user_has_a_service_too(booted):
    """A user's own manager runs the daemon, makes what is wanted, and a kill of all of it ends nothing for good."""
    if booted.run(*NOBODY, "sh", "-c", "kitfs version >/dev/null 2>&1 || echo no"):
        pytest.skip("no Python that another user can run")
    booted.run("useradd", "--create-home", "--uid", USER, "user")
    booted.run("loginctl", "enable-linger", "user")
    booted.run("systemctl", "start", f"user@{USER}.service")

    def as_user(*words: str) -> str:
        return booted.run("runuser", "-u", "user", "--", "env", f"XDG_RUNTIME_DIR=/run/user/{USER}", *words)

    as_user("kitfs", "pack", "/srv/kit", "-t", "mine:1")
    as_user("systemctl", "--user", "start", "kitfs.service")
    as_user("mkdir", "/home/user/mnt")
    as_user("kitfs", "mount", "--wanted", "mine:1", "/home/user/mnt")
    as_user("cmp", WEIGHTS, "/home/user/mnt/weights.bin")
    as_user("systemctl", "--user", "kill", "--kill-whom=all", "--signal=KILL", "kitfs.service")
    as_user("systemctl", "--user", "start", "kitfs-restore.service")
    as_user("cmp", WEIGHTS, "/home/user/mnt/weights.bin")
    as_user("kitfs", "umount", "/home/user/mnt")


def test_units_are_as_they_must_be(booted):
    """systemd-analyze finds nothing wrong with a unit that it runs, and the daemon is exposed little."""
    units = sorted(path.name for path in (booted.root / "etc/systemd/system").glob("kitfs*.*") if path.is_file())
    assert len(units) == 8
    assert booted.run("systemd-analyze", "verify", *units) == ""
    said = booted.run("systemd-analyze", "security", "kitfs.service")
    assert float(said.split("Overall exposure level for kitfs.service: ")[1].split()[0]) <= 3.0


def test_mounts_are_there_after_a_reboot(booted):
    """What fstab names, what an enabled unit mounts, and what is wanted, with what was written to it."""
    (booted.root / "etc/kitfs/mounts/mnt-unit.conf").write_text("REFERENCE=plain:1\n")
    booted.run("systemctl", "enable", "--now", "kitfs-mount@mnt-unit")
    booted.run("mkdir", "-p", "/mnt/wanted", "/mnt/work")
    booted.run("kitfs", "mount", "--wanted", "plain:1", "/mnt/wanted")
    booted.run("kitfs", "mount", "--wanted", "--writable", "packed:1", "/mnt/work")
    booted.run("cp", "/etc/fstab", "/mnt/work/new")
    booted.run("systemctl", "reboot")
    booted.wait_for_end()
    booted.boot()
    mounts = {"/mnt/wanted", "/mnt/unit", "/mnt/fstab", "/mnt/work"}
    check_shown(booted, *mounts, "/mnt/all/plain/1", "/mnt/all/packed/1")
    booted.run("cmp", "/etc/fstab", "/mnt/work/new")
    assert booted.run("findmnt", "-n", "-o", "SOURCE,FSTYPE", "/mnt/fstab").split() == ["packed:1", "fuse.kitfs"]
    assert shown(booted) == {*mounts, "/mnt/all"}
    booted.run("systemctl", "disable", "--now", "kitfs-mount@mnt-unit")
    booted.run("kitfs", "umount", "/mnt/wanted")
    booted.run("kitfs", "umount", "/mnt/work")
