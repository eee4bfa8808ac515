"""What a shell's completion script asks for: references of the store, mount points, directories.

click completes verbs, options and choices. This module adds what the arguments of each verb are (``ARGUMENTS``), and
a script for bash that knows that bash cuts words at ``:``, ``@`` and ``=``, of which references are made. It is
imported only while a shell completes, or for ``kitfs completion``. Whatever fails completes to nothing.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)
from click.types import StringParamType

from kitfs.cli.group import COMPLETE_VARIABLE
from kitfs.cli.settings import Settings
from kitfs.errors import KitfsError
from kitfs.oci.reference import DEFAULT_HOST

if TYPE_CHECKING:
    from kitfs.store.store import Store

_BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o plusdirs ;;
            file) compopt -o bashdefault -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_SPECIAL = re.compile(r"([^\w@%+=:,./~-])")


class Completed(StringParamType, ABC):
    """A word that a shell can complete; on the command line it is text like any other."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """What begins with ``incomplete``."""
        try:
            return [item for item in self.iter_items(ctx, param, incomplete) if _fits(item, incomplete)]
        except (KitfsError, OSError):
            return []

    @abstractmethod
    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """All that the word may be."""


def _fits(item: CompletionItem[Any], incomplete: str) -> bool:
    return item.type != "plain" or str(item.value).startswith(incomplete)


class References(Completed):
    """References of the store: ``repository:tag``, and ModelKitIDs once an ``@`` or ``sha256:`` is typed."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """Names as ``kitfs list`` shows them."""
        settings = ctx.ensure_object(Settings)
        if settings.home.exists():
            with settings.open_store(create=False) as store:
                yield from map(CompletionItem, sorted(set(self.iter_names(store, incomplete))))

    def iter_names(self, store: Store, incomplete: str) -> Iterator[str]:
        """Names of the form that has been begun."""
        from kitfs.oci.reference import Reference

        if incomplete.startswith("sha256:"):
            yield from (str(digest) for digest, _ in store.iter_manifests())
            return
        for repository, tag, record in store.iter_tags():
            digest = record.manifest if "@" in incomplete else None
            yield Reference(repository, tag, digest).display


class Repositories(References):
    """Repositories of the store, and references once a ``:`` or ``@`` is typed."""

    def iter_names(self, store: Store, incomplete: str) -> Iterator[str]:
        """Names of the form that has been begun."""
        if ":" in incomplete or "@" in incomplete:
            yield from super().iter_names(store, incomplete)
        yield from (repository.removeprefix("localhost/") for repository, _, _ in store.iter_tags())


class Hosts(References):
    """Registries that ModelKits of the store are named after."""

    def iter_names(self, store: Store, incomplete: str) -> Iterator[str]:
        """Hosts, with their ports."""
        hosts = (repository.partition("/")[0] for repository, _, _ in store.iter_tags())
        yield from (host for host in hosts if host != DEFAULT_HOST)


class Mounts(Completed):
    """Mount points, and the references that are mounted."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """Both of every mount, as ``kitfs umount`` takes them."""
        from kitfs.mountinfo import find_overlays
        from kitfs.mounting import find_mounts

        places = {overlay.lower: overlay.mount.mountpoint for overlay in find_overlays()}
        for mounted in find_mounts():
            yield CompletionItem(str(places.get(mounted.mountpoint, mounted.mountpoint)))
            yield CompletionItem(mounted.reference)


class ReferencesOrMounts(References):
    """References of the store, and mount points."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """First what is mounted."""
        yield from Mounts().iter_items(ctx, param, incomplete)
        yield from super().iter_items(ctx, param, incomplete)


class ReferencesOrDirectory(References):
    """References of the store, and directories."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """The shell knows the directories."""
        yield CompletionItem("", type="dir")
        yield from super().iter_items(ctx, param, incomplete)


class ReferenceThenDirectory(References):
    """The words of ``kitfs mount``: a reference, then a directory; with ``--all`` a directory."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """By how many words there are."""
        words = ctx.params.get(param.name or "") or ()
        if words or ctx.params.get("everything"):
            yield CompletionItem("", type="dir")
        else:
            yield from super().iter_items(ctx, param, incomplete)


class StagingDirectories(Completed):
    """Staging directories of the store by the names that ``kitfs staging list`` shows, and directories."""

    def iter_items(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Iterator[CompletionItem[Any]]:
        """Both; nothing is looked at but the store's own list."""
        from kitfs.store.staging import iter_registrations

        settings = ctx.ensure_object(Settings)
        if settings.home.exists():
            with settings.open_store(create=False) as store:
                names = [path.stem for path, _ in iter_registrations(store.layout)]
            yield from map(CompletionItem, names)
        yield CompletionItem("", type="dir")


ARGUMENTS: dict[tuple[str, str], Completed] = {
    ("commit", "reference"): References(),
    ("diff", "modelkit1"): ReferencesOrDirectory(),
    ("diff", "modelkit2"): References(),
    ("du", "references"): References(),
    ("export", "reference"): References(),
    ("info", "reference"): References(),
    ("inspect", "reference"): References(),
    ("list", "repository"): Repositories(),
    ("log", "reference"): References(),
    ("login", "registry"): Hosts(),
    ("logout", "registry"): Hosts(),
    ("mount", "words"): ReferenceThenDirectory(),
    ("prefetch", "what"): ReferencesOrMounts(),
    ("pull", "reference"): References(),
    ("push", "source"): References(),
    ("push", "target"): References(),
    ("remove", "reference"): References(),
    ("staging", "names"): StagingDirectories(),
    ("tag", "source"): References(),
    ("tag", "target"): References(),
    ("umount", "what"): Mounts(),
    ("unpack", "reference"): References(),
    ("verify", "reference"): References(),
}
"""What the arguments are that are only text to their verb."""


def set_types(command: click.Command) -> None:
    """Have the arguments of a verb complete to what they are."""
    for parameter in command.params:
        found = ARGUMENTS.get((command.name or "", parameter.name or ""))
        if found is not None:
            parameter.type = found


class KitfsBashComplete(BashComplete):
    """bash: reads the line itself, as bash has cut it in places that a reference goes on over."""

    source_template: ClassVar[str] = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it stands in."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        if line[-1:].isspace() or len(words) < 2:
            return words[1:], ""
        return words[1:-1], words[-1]

    def complete(self) -> str:
        """The lines for the script: of each word what stands after the last cut, as bash keeps the rest."""
        words, incomplete = self.get_completion_args()
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        cut = max((incomplete.rfind(mark) + 1 for mark in ":@=" if mark in breaks), default=0)
        lines = []
        for item in self.get_completions(words, incomplete):
            value = _SPECIAL.sub(r"\\\1", str(item.value).removeprefix(incomplete[:cut]))
            lines.append(f"{item.type},{value}")
        return "\n".join(lines)


def register() -> None:
    """Have click use the script and the cutting of this module for bash."""
    add_completion_class(KitfsBashComplete)


def encode_script(shell: str) -> str:
    """The completion script of one shell, without a line feed at its end."""
    from kitfs.cli.main import cli

    register()
    kind: type[ShellComplete] | None = get_completion_class(shell)
    if kind is None:
        raise LookupError(shell)
    return kind(cli, {}, "kitfs", COMPLETE_VARIABLE).source().rstrip("\n")
