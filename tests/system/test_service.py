"""The units under a real systemd, in a machine of its own: boot, mounts, restarts under load, kills, a reboot."""

import pytest

pytestmark = pytest.mark.system

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WEIGHTS = "/srv/kit/weights.bin"


@pytest.fixture
def place(booted):
    """``place(name, reference, *words)``: mounts, and the mount point. Unmounted in the end."""
    places = []

    def mount(name: str, reference: str = "plain:1", *words: str) -> str:
        places.append(f"/mnt/{name}")
        booted.run("mkdir", "-p", places[-1])
        booted.run("kitfs", "mount", *words, reference, places[-1])
        return places[-1]

    yield mount
    for one in places:
        booted.run("kitfs", "umount", one)


def shown(booted) -> set[str]:
    """Where ``kitfs ps`` says that something is served."""
    import json

    states = json.loads(booted.run("kitfs", "ps", "--format", "json"))
    return {state["mountpoint"] for state in states if state["state"] not in ("absent", "gone")}


def check_shown(booted, *places: str) -> None:
    """Everybody can read what is mounted, and it is what it must be."""
    for place in places:
        booted.run(*NOBODY, "cmp", WEIGHTS, f"{place}/weights.bin")


def test_line_of_fstab_is_mounted_at_boot(booted):
    """What it names can be read by everybody once the machine is up."""
    assert booted.run("findmnt", "-n", "-o", "SOURCE,FSTYPE", "/mnt/fstab").split() == ["packed:1", "fuse.kitfs"]
    check_shown(booted, "/mnt/fstab")
    assert "/mnt/fstab" in shown(booted)


def test_mount_unit_mounts_for_everybody_and_unmounts(booted):
    """``kitfs-mount@`` mounts what its file names where everybody sees it; stopping it unmounts."""
    (booted.root / "etc/kitfs/mounts/mnt-unit.conf").write_text("REFERENCE=plain:1\nOPTIONS=nometa\n")
    booted.run("systemctl", "start", "kitfs-mount@mnt-unit")
    check_shown(booted, "/mnt/unit")
    assert ".kitfs" not in booted.run("ls", "-A", "/mnt/unit")
    booted.run("systemctl", "restart", "kitfs.service")
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
        for _ in range(5):
            daemon = booted.main_pid()
            booted.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "kitfs.service")
            booted.run("kitfs", "ps")
            assert booted.main_pid() not in (0, daemon)
            readers.next()


def test_stopped_daemon_is_replaced_by_the_watchdog(booted, place):
    """A daemon that hangs is killed and replaced by systemd; readers do not notice."""
    drop_in = booted.root / "etc/systemd/system/kitfs.service.d/watchdog.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=1\n")
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "restart", "kitfs.service")
    with booted.reading(place("a")) as readers:
        daemon = booted.main_pid()
        booted.run("kill", "-STOP", daemon)
        booted.run("kitfs", "ps")
        assert booted.main_pid() not in (0, daemon)
        assert "Watchdog timeout" in booted.journal("kitfs.service")
        readers.next()
    drop_in.unlink()
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "restart", "kitfs.service")


def test_all_processes_of_the_service_are_killed_at_once(booted, place):
    """What is wanted is mounted again by the time that the service is up."""
    mount = place("wanted", "packed:1", "--wanted")
    booted.run("systemctl", "kill", "--kill-whom=all", "--signal=KILL", "kitfs.service")
    booted.run("systemctl", "start", "kitfs-restore.service")
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


def test_socket_starts_the_service(booted):
    """A command that finds no daemon running is answered by one that systemd starts for it."""
    booted.run("systemctl", "stop", "kitfs.service")
    assert booted.main_pid() == 0
    booted.run("kitfs", "ps")
    assert booted.main_pid() != 0


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


def test_units_are_as_they_must_be(booted):
    """systemd-analyze finds nothing wrong with a unit that it runs, and the daemon is exposed little."""
    units = sorted(path.name for path in (booted.root / "etc/systemd/system").glob("kitfs*.*") if path.is_file())
    assert len(units) == 8
    assert booted.run("systemd-analyze", "verify", *units) == ""
    said = booted.run("systemd-analyze", "security", "kitfs.service")
    assert float(said.split("Overall exposure level for kitfs.service: ")[1].split()[0]) <= 3.0


def test_wanted_mounts_are_back_after_a_reboot(booted):
    """So is what fstab names, and what an enabled unit mounts."""
    (booted.root / "etc/kitfs/mounts/mnt-unit.conf").write_text("REFERENCE=plain:1\n")
    booted.run("systemctl", "enable", "--now", "kitfs-mount@mnt-unit")
    booted.run("mkdir", "-p", "/mnt/wanted")
    booted.run("kitfs", "mount", "--wanted", "plain:1", "/mnt/wanted")
    booted.run("systemctl", "reboot")
    booted.wait_for_end()
    booted.boot()
    mounts = {"/mnt/wanted", "/mnt/unit", "/mnt/fstab"}
    check_shown(booted, *mounts)
    assert shown(booted) == mounts
    booted.run("systemctl", "disable", "--now", "kitfs-mount@mnt-unit")
    booted.run("kitfs", "umount", "/mnt/wanted")
