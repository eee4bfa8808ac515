"""The units of systemd: whole, as systemd reads them, and hardened where they can be."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from kitfs.cli import units

EXPOSURE_MAX = 3.0
"""What ``systemd-analyze security`` may say of the daemon's service, 0 (none) to 10."""

NAMES = {
    *("kitfs.service", "kitfs.socket", "kitfs-mount@.service", "kitfs-restore.service"),
    *("kitfs-gc.service", "kitfs-gc.timer", "kitfs-scrub.service", "kitfs-scrub.timer"),
}

USER_NAMES = {"kitfs.service", "kitfs-restore.service"}


@pytest.fixture
def installed(kitfs, tmp_path: Path, monkeypatch) -> Path:
    """A folder of installed units that run a command which is there."""
    program = tmp_path / "bin" / "kitfs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(program)])
    done = kitfs("doctor", "--install-units", "--root", tmp_path / "root")
    assert done.code == 0 and "systemctl" in done.err
    written = [Path(line) for line in done.out.splitlines()]
    assert {path.name for path in written} == NAMES | {"mount.kitfs"}
    assert {path.name for path in (tmp_path / "root" / units.USER_FOLDER).iterdir()} == USER_NAMES
    assert len(written) == len(NAMES) + len(USER_NAMES) + 1
    return tmp_path / "root" / units.UNIT_FOLDER


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; it needs no systemd that runs."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is absent")
    command = ["systemd-analyze", *map(str, words)]
    environment = os.environ | {"XDG_RUNTIME_DIR": tempfile.gettempdir()}  # for --user
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def words_of(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit: its values by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), flags=re.M):
        found.setdefault(name, []).append(value)
    return found


def test_installed_units_run_the_command_that_installed_them(installed, tmp_path, kitfs):
    """Every command has its whole path, the helper of mount(8) is linked, and a second time changes nothing."""
    program = tmp_path / "bin" / "kitfs"
    before = {path.name: path.read_text() for path in installed.iterdir()}
    assert set(before) == NAMES and not any("@kitfs@" in text for text in before.values())
    assert all(f"ExecStart={program} " in text for name, text in before.items() if name.endswith(".service"))
    assert (tmp_path / "root/sbin/mount.kitfs").readlink() == program
    assert kitfs("doctor", "--install-units", "--root", tmp_path / "root", "--format", "json").code == 0
    assert {path.name: path.read_text() for path in installed.iterdir()} == before


def test_systemd_finds_nothing_wrong_with_the_units(installed):
    """``systemd-analyze verify`` prints nothing: its exit code is 0 for an unknown setting too."""
    said = analyze("verify", *sorted(installed.iterdir()))
    assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)
    said = analyze("verify", "--user", *sorted((installed.parent / "user").iterdir()))
    assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)


def test_verification_would_find_something(installed):
    """A setting that systemd does not know is printed: the test above can fail."""
    unit = installed / "kitfs.service"
    unit.write_text(unit.read_text().replace("Type=notify", "Type=colour"))
    assert "colour" in analyze("verify", unit).stderr


def test_daemon_is_exposed_little(installed):
    """The service that never mounts is hardened."""
    said = analyze("security", "--offline=true", installed / "kitfs.service").stdout
    found = re.search(r"Overall exposure level for kitfs.service: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= EXPOSURE_MAX


def test_unit_that_mounts_has_no_mount_namespace_of_its_own(installed):
    """Whatever gives one hides its mount from everybody else (systemd.exec(5))."""
    private = re.compile(
        r"Protect\w+|Private\w+|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|"
        r"TemporaryFileSystem|Root\w+|MountAPIVFS|(State|Runtime|Cache|Logs)Directory\w*|DynamicUser|MountFlags|ProcSubset"
    )
    for name in ("kitfs-mount@.service", "kitfs-restore.service"):
        assert [word for word in words_of(installed / name) if private.fullmatch(word)] == []


def test_collection_sees_every_staging_directory(installed):
    """A staging directory that was hidden from it would look removed."""
    for name in ("kitfs-gc.service", "kitfs-scrub.service"):
        assert not {"PrivateTmp", "ProtectHome", "InaccessiblePaths", "TemporaryFileSystem"} & set(
            words_of(installed / name)
        )


def test_restart_of_the_service_leaves_workers(installed):
    """Only the daemon is told to end; a mount requires nothing whose end would unmount it."""
    service, mount = words_of(installed / "kitfs.service"), words_of(installed / "kitfs-mount@.service")
    assert (service["KillMode"], service["OOMPolicy"]) == (["process"], ["continue"])
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert mount["Wants"] == ["kitfs.socket"] and not {"Requires", "BindsTo", "PartOf"} & set(mount)


def test_units_come_with_the_package():
    """The package's data names them: an installed kitfs has them too."""
    import tomllib

    project = Path(units.__file__).parent.parent.parent / "pyproject.toml"
    data = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]
    assert {"systemd/*", "systemd/user/*"} <= set(data["kitfs"])
    assert {name for name, _ in units.iter_units()} == NAMES
    assert {name for name, _ in units.iter_units(users=True)} == USER_NAMES
