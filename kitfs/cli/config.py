"""Configuration files and the environment: what holds where no flag says otherwise.

Order: flag, environment, ``~/.config/kitfs/config.toml``, ``/etc/kitfs/config.toml``, default; each key by itself. The
parser is imported when there is a file: 6 ms that a mount without one does not take. ::

    [cache]
    materialise = "auto"     # or "never", "always"; KITFS_MATERIALISE
    size_max = "100G"        # bytes, "80%", "unlimited"; KITFS_CACHE_SIZE_MAX
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


_CACHE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "materialise": ("KITFS_MATERIALISE", check_materialise),
    "size_max": ("KITFS_CACHE_SIZE_MAX", _check_size),
}
"""Key to the variable that overrides it, and what reads its value."""


def read_cache_settings(files: tuple[Path, ...] | None = None) -> CacheSettings:
    """What the environment and the configuration files say, the first that says something first.

    Args:
        files: Configuration files, the strongest first; None for the user's and the system's.

    Raises:
        ConfigInvalid: when a file can not be read or parsed, a key is unknown, or a value is none.
    """
    values: dict[str, Any] = {}
    for path in reversed((user_file(), SYSTEM_FILE) if files is None else files):
        values |= _read_file(path)
    for key, (variable, check) in _CACHE.items():
        if text := os.environ.get(variable):
            values[key] = _checked(variable, check, text)
    return CacheSettings(**values)


def _read_file(path: Path) -> dict[str, str]:
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


def _read_document(place: str, document: dict[str, Any]) -> dict[str, str]:
    for name, table in document.items():
        if name != "cache" or not isinstance(table, dict):
            raise ConfigInvalid(place, f"unknown key {name!r}", "there is one table, [cache]")
    values = {}
    for key, value in document.get("cache", {}).items():
        if key not in _CACHE:
            raise ConfigInvalid(place, f"unknown key 'cache.{key}'", f"keys of [cache]: {', '.join(_CACHE)}")
        values[key] = _checked(f"{place}: cache.{key}", _CACHE[key][1], value)
    return values


def _checked(place: str, check: Callable[[Any], str], value: Any) -> str:
    try:
        return check(value)
    except KitfsError as error:
        raise ConfigInvalid(place, str(error), getattr(error, "hint", "")) from error
