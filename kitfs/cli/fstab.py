"""``mount.kitfs``: what mount(8) runs for ``mount -t kitfs REFERENCE DIRECTORY`` and for a line of fstab.

``kitfs`` under that name is called as mount(8) calls its helpers, and ends with mount(8)'s exit codes. What it is told
becomes the words of a ``kitfs mount``; nothing else is decided here.
"""

from __future__ import annotations

import getopt
from collections.abc import Callable, Sequence
from pathlib import PurePath

from kitfs.cli.mounts import MountOptions, OptionUnknown
from kitfs.cli.output import say
from kitfs.errors import KitfsError, UsageError

NAME = "mount.kitfs"

_USAGE = f"usage: {NAME} REFERENCE DIRECTORY [-fnsv] [-t kitfs] [-o OPTIONS]"
_FLAGS = {"all": "--all", "writable": "--writable"}
_VALUES = {"filter": "--filter", "home": "--home", "socket": "--socket", "staging": "--staging"}
"""What ``-o`` has here and not in ``kitfs mount``, where it has flags of its own: fstab has no flags."""

_IGNORED = {
    *("rw", "dev", "suid", "async", "sync", "silent", "loud", "mand", "nomand"),
    *("diratime", "nodiratime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"),
    *("_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group"),
}
"""Options that mount(8) or systemd carry out, and those that a read-only mount has no use for.

``rw`` is among them because mount(8) says it whenever nobody said ``ro``.
"""

_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")

_FAILED = 32
_EXIT_BITS = {0: 0, 2: 1, 8: 2, 9: 2, 130: 8}
"""Exit code of ``kitfs mount`` to that of mount(8): usage, the system, an interrupt; everything else is ``_FAILED``."""


def is_mount_helper(program: str) -> bool:
    """Whether this name of the program makes it ``mount.kitfs``."""
    return PurePath(program).name == NAME


def run_mount_helper(arguments: Sequence[str], run: Callable[[list[str]], int]) -> int:
    """Mount what mount(8) asks for.

    Args:
        arguments: As mount(8) gives them to its helpers.
        run: Runs a command line of kitfs.

    Returns:
        An exit code of mount(8).
    """
    try:
        words = translate(arguments)
    except KitfsError as error:
        say(f"{NAME}: {error}")
        if error.hint:
            say(f"  {error.hint}")
        return _EXIT_BITS[2]
    return 0 if words is None else _EXIT_BITS.get(run(words), _FAILED)


def translate(arguments: Sequence[str]) -> list[str] | None:
    """The words of ``kitfs`` that do what mount(8) asks for; None when it only wants it tried (``-f``).

    Raises:
        UsageError: when it can not be understood.
        OptionUnknown: for an option that there is not, without ``-s``.
    """
    try:
        flags, words = getopt.gnu_getopt(list(arguments), "fnsvo:t:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; {_USAGE}") from None
    if len(words) != 2:
        raise UsageError(_USAGE)
    names = [name for name, _ in flags]
    options = [option for name, value in flags if name == "-o" for option in value.split(",") if option]
    translated = [word for option in options for word in _translate_option(option, is_sloppy="-s" in names)]
    if "-f" in names:
        return None
    source = words[:1] if "--all" not in translated else []
    verbose = ["-v"] if "-v" in names else []
    return ["mount", *verbose, "-o", f"fsname={words[0]}", *translated, "--", *source, words[1]]


def _translate_option(option: str, *, is_sloppy: bool) -> list[str]:
    name, separator, value = option.partition("=")
    if option in _FLAGS:
        return [_FLAGS[option]]
    if separator and name in _VALUES:
        return [_VALUES[name], value]
    if option in _IGNORED or option.startswith(_IGNORED_PREFIXES):
        return []
    try:
        MountOptions.parse((option,))
    except OptionUnknown:
        if not is_sloppy:
            raise
        return []
    return ["-o", option]
