"""Configuration files and the environment: what holds where no flag says otherwise.

Order: flag, environment, ``~/.config/kitfs/config.toml``, ``/etc/kitfs/config.toml``, default; each key by itself. The
parser is imported when there is a file: 6 ms that a mount without one does not take. ::

    [cache]
    materialise = "auto"     # or "never", "always"; KITFS_MATERIALISE
    size_max = "100G"        # bytes, "80%", "unlimited"; KITFS_CACHE_SIZE_MAX

    [daemon]
    metrics = "off"          # or "/run/kitfs/metrics.sock", "127.0.0.1:9464"; KITFS_METRICS
    log_format = "text"      # or "json"; KITFS_LOG_FORMAT
    log_level = "info"       # "error", "warn", "info", "debug"; KITFS_LOG_LEVEL

What is said of the daemon holds when one is started; it and its children have it in their environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kitfs.errors import KitfsError, UsageError

SYSTEM_FILE = Path("/etc/kitfs/config.toml")
Policy = Literal["auto", "never", "always"]
_SIZE_MAX = 1 << 20


class ConfigInvalid(UsageError):
    """A setting, or a file of settings, that can not be understood.

    Attributes:
        place: The file, or the variable of the environment.
        reason: What is wrong.
    """

    def __init__(self, place: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{place}: {reason}")
        self.hint = hint
        self.place = place
        self.reason = reason


class CacheSettings(NamedTuple):
    """Settings of what is materialised.

    Attributes:
        materialise: ``auto``, ``never`` or ``always``.
        size_max: What members may take, as ``kitfs.store.quota`` reads it; empty when nobody says.
    """

    materialise: Policy = "auto"
    size_max: str = ""


def user_file() -> Path:
    """The user's own configuration."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "kitfs" / "config.toml"


class PolicyUnknown(UsageError):
    """A value of ``materialise`` that kitfs does not have."""

    hint = "materialise is auto, never or always"


def check_materialise(value: Any) -> Policy:
    """The value, when it is a policy (``kitfs.layer.policy``).

    Raises:
        PolicyUnknown: when it is not.
    """
    match value:
        case "auto" | "never" | "always":
            policy: Policy = value
            return policy
    raise PolicyUnknown(f"unknown materialise={value!r}")


def _check_size(value: Any) -> str:
    from kitfs.store.quota import parse_quota

    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"{value!r} is not a size")
    parse_quota(str(value))
    return str(value)


def _check_address(value: Any) -> str:
    from kitfs.daemon.address import parse_address

    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise UsageError(f"{value!r} is not an address")
    parse_address(text)
    return text


def _check_word(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise UsageError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


_TABLES: dict[str, dict[str, tuple[str, Callable[[Any], str]]]] = {
    "cache": {
        "materialise": ("KITFS_MATERIALISE", check_materialise),
        "size_max": ("KITFS_CACHE_SIZE_MAX", _check_size),
    },
    "daemon": {
        "metrics": ("KITFS_METRICS", _check_address),
        "log_format": ("KITFS_LOG_FORMAT", _check_word("text", "json")),
        "log_level": ("KITFS_LOG_LEVEL", _check_word("error", "warn", "info", "debug")),
    },
}
"""Of each table its keys: the variable that overrides it, and what reads its value."""


def read_cache_settings(files: tuple[Path, ...] | None = None) -> CacheSettings:
    """What the environment and the configuration files say of the cache, the first that says something first.

    Args:
        files: Configuration files, the strongest first; None for the user's and the system's.

    Raises:
        ConfigInvalid: when a file can not be read or parsed, a key is unknown, or a value is none.
    """
    return CacheSettings(**_read_table("cache", files))


def read_daemon_environment(files: tuple[Path, ...] | None = None, **flags: str | None) -> dict[str, str]:
    """The environment of a daemon that is started here: this process's, and what flags and files say.

    Args:
        files: Configuration files, as for ``read_cache_settings``.
        flags: Values of keys of ``[daemon]`` that flags gave; None for those that none did.

    Raises:
        ConfigInvalid: as for ``read_cache_settings``.
    """
    values = _read_table("daemon", files)
    values |= {key: _checked(f"--{key.replace('_', '-')}", _TABLES["daemon"][key][1], value)
               for key, value in flags.items() if value is not None}  # fmt: skip
    return {**os.environ, **{_TABLES["daemon"][key][0]: value for key, value in values.items()}}


def _read_table(name: str, files: tuple[Path, ...] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in reversed((user_file(), SYSTEM_FILE) if files is None else files):
        values |= _read_file(path).get(name, {})
    for key, (variable, check) in _TABLES[name].items():
        if text := os.environ.get(variable):
            values[key] = _checked(variable, check, text)
    return values


def _read_file(path: Path) -> dict[str, dict[str, str]]:
    try:
        with open(path, "rb") as file:
            raw = file.read(_SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigInvalid(str(path), error.strerror or str(error)) from error
    if len(raw) > _SIZE_MAX:
        raise ConfigInvalid(str(path), f"it has more than {_SIZE_MAX} bytes")
    import tomllib

    try:
        document = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigInvalid(str(path), str(error)) from error
    return _read_document(str(path), document)


def _read_document(place: str, document: dict[str, Any]) -> dict[str, dict[str, str]]:
    values: dict[str, dict[str, str]] = {}
    for name, table in document.items():
        if name not in _TABLES or not isinstance(table, dict):
            tables = ", ".join(f"[{table}]" for table in _TABLES)
            raise ConfigInvalid(place, f"unknown key {name!r}", f"there are tables {tables}")
        keys = _TABLES[name]
        for key, value in table.items():
            if key not in keys:
                raise ConfigInvalid(place, f"unknown key '{name}.{key}'", f"keys of [{name}]: {', '.join(keys)}")
            values.setdefault(name, {})[key] = _checked(f"{place}: {name}.{key}", keys[key][1], value)
    return values


def _checked(place: str, check: Callable[[Any], str], value: Any) -> str:
    try:
        return check(value)
    except KitfsError as error:
        raise ConfigInvalid(place, str(error), getattr(error, "hint", "")) from error
