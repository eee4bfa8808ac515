"""Settings: which of flag, environment, user's file and system's file holds, and what is refused."""

import os
from pathlib import Path

import pytest

from kitfs.cli.config import CacheSettings, ConfigInvalid, read_cache_settings, read_daemon_environment
from kitfs.store.quota import Quota, QuotaMalformed, parse_quota


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("MATERIALISE", "CACHE_SIZE_MAX", "METRICS", "LOG_FORMAT", "LOG_LEVEL"):
        monkeypatch.delenv(f"KITFS_{name}", raising=False)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_settings_the_defaults_hold(tmp_path):
    """Nobody has to write a file."""
    assert read_cache_settings((tmp_path / "a", tmp_path / "a" / "b")) == CacheSettings("auto", "")


def test_each_key_comes_from_the_strongest_that_has_it(tmp_path, monkeypatch):
    """Environment before the user's file before the system's, each key by itself."""
    user = _write(tmp_path / "user.toml", '[cache]\nmaterialise = "never"\n')
    system = _write(tmp_path / "system.toml", '[cache]\nmaterialise = "always"\nsize_max = "10G"\n')
    assert read_cache_settings((user, system)) == CacheSettings("never", "10G")
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "80%")
    assert read_cache_settings((user, system)) == CacheSettings("never", "80%")
    monkeypatch.setenv("KITFS_MATERIALISE", "auto")
    assert read_cache_settings((user, system)) == CacheSettings("auto", "80%")


def test_bytes_may_be_a_number(tmp_path):
    """TOML has integers."""
    assert read_cache_settings((_write(tmp_path / "c", "[cache]\nsize_max = 1000\n"),)).size_max == "1000"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[cache]\nmaterialize = "never"\n', "cache.materialize"),
        ('[cash]\nmaterialise = "never"\n', "'cash'"),
        ('materialise = "never"\n', "'materialise'"),
        ('[cache]\nmaterialise = "sometimes"\n', "sometimes"),
        ("[cache]\nsize_max = true\n", "cache.size_max"),
        ('[cache]\nsize_max = "110%"\n', "110%"),
        ("[cache]\nsize_max = -1\n", "-1"),
        ('[daemon]\nmetrics = "0.0.0.0:9464"\n', "daemon.metrics"),
        ("[daemon]\nmetrics = true\n", "daemon.metrics"),
        ('[daemon]\nlog_format = "xml"\n', "text, json"),
        ('[daemon]\nmaterialise = "auto"\n', "daemon.materialise"),
        ("daemon = 1\n", "'daemon'"),
        ("[cache\n", "line 1"),
        ("\x00", "line 1"),
        ("a = " + "[" * 10000, ""),
    ],
)
def test_what_is_no_setting_is_refused_with_its_place(tmp_path, text, named):
    """A misspelt key that did nothing would be found when the disk is full."""
    path = _write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigInvalid) as caught:
        read_cache_settings((path,))
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_a_daemon_has_its_settings_in_its_environment(tmp_path, monkeypatch):
    """Flag before environment before the user's file before the system's; what nobody said is not set."""
    assert read_daemon_environment(()) == dict(os.environ)
    user = _write(tmp_path / "user.toml", '[daemon]\nlog_format = "json"\nmetrics = 9464\n')
    system = _write(tmp_path / "system.toml", '[daemon]\nlog_level = "error"\nlog_format = "text"\n[cache]\n')
    expected = {"KITFS_LOG_FORMAT": "json", "KITFS_LOG_LEVEL": "error", "KITFS_METRICS": "9464"}
    assert read_daemon_environment((user, system)).items() >= expected.items()
    monkeypatch.setenv("KITFS_METRICS", "/run/m.sock")
    expected["KITFS_METRICS"] = "/run/m.sock"
    assert read_daemon_environment((user, system), metrics=None).items() >= expected.items()
    assert read_daemon_environment((user, system), metrics="off")["KITFS_METRICS"] == "off"
    with pytest.raises(ConfigInvalid, match=r"--log-level.*'loud'"):
        read_daemon_environment((), log_level="loud")


def test_a_variable_that_is_no_setting_is_named(monkeypatch):
    """The environment is checked like a file."""
    monkeypatch.setenv("KITFS_CACHE_SIZE_MAX", "lots")
    with pytest.raises(ConfigInvalid, match=r"KITFS_CACHE_SIZE_MAX.*'lots'"):
        read_cache_settings(())


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("", Quota()),
        ("unlimited", Quota()),
        ("0", Quota(size=0)),
        ("4096", Quota(size=4096)),
        ("4096B", Quota(size=4096)),
        ("100G", Quota(size=100 << 30)),
        ("1.5 TiB", Quota(size=3 << 39)),
        ("512mb", Quota(size=512 << 20)),
        ("80%", Quota(share=0.8)),
        ("0.5%", Quota(share=0.005)),
    ],
)
def test_sizes_people_write_are_understood(text, quota):
    """Bytes, powers of 1024 with any of the usual spellings, parts of the disk."""
    assert parse_quota(text) == quota


@pytest.mark.parametrize("text", ["G", "-1", "1.5", "101%", "1e9", "10 apples", "1iB", "٣", "1" * 40])
def test_what_is_no_size_is_refused(text):
    """Nothing is guessed at."""
    with pytest.raises(QuotaMalformed):
        parse_quota(text)


def test_a_part_of_the_disk_stays_free_whatever_the_quota():
    """5 % of a small disk, 20 GiB of a large one: what could be made anew never fills it."""
    small = os.statvfs_result((4096, 4096, 1000, 100, 100, 0, 0, 0, 0, 255))
    assert Quota().limit(0, small) == (100 - 50) * 4096
    assert Quota(size=1 << 40).limit(4096 * 10, small) == (10 + 100 - 50) * 4096
    assert Quota(size=4096).limit(0, small) == 4096
    large = os.statvfs_result((4096, 4096, 1 << 40, 1 << 39, 1 << 39, 0, 0, 0, 0, 255))
    assert Quota().limit(0, large) == (1 << 51) - (20 << 30)


def test_a_mount_with_an_unknown_policy_or_setting_is_refused_before_anything_happens(kitfs, tmp_path, monkeypatch):
    """Exit code 2, the value and what there is instead named, and no store made."""
    place = tmp_path / "mnt"
    place.mkdir()
    done = kitfs("mount", "a:1", place, "-o", "materialise=maybe")
    assert done.code == 2
    assert "materialise='maybe'" in done.err
    assert "auto, never or always" in done.err
    _write(tmp_path / "config/kitfs/config.toml", "[cache]\nsizemax = 1\n")
    done = kitfs("mount", "a:1", place)
    assert done.code == 2
    assert "cache.sizemax" in done.err
    assert not (tmp_path / "home").exists()
