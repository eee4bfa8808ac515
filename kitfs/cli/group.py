"""The group of all verbs: imports one when it is asked for, shows help by topic, and knows what was meant.

A verb's file is imported when the verb is run, so that start-up stays short; the list of verbs in ``kitfs --help``
imports them all.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import click

COMPLETE_VARIABLE = "_KITFS_COMPLETE"
"""The environment variable by which a shell's completion script asks for completions."""

TOPICS: dict[str, tuple[str, ...]] = {
    "Mount and read": ("mount", "umount", "ps", "prefetch", "staging"),
    "Look at ModelKits": ("list", "info", "inspect", "diff", "log"),
    "Make ModelKits and take them apart": ("init", "pack", "commit", "unpack", "tag", "remove"),
    "Bring them in and out": ("pull", "push", "import", "export", "login", "logout"),
    "Care for the store": ("du", "gc", "verify", "fsck"),
    "kitfs itself": ("status", "daemon", "doctor", "completion", "version"),
}
OTHERS = "Others"

KIT_ONLY = {
    "cache": "",
    "dev": "",
    "help": "run kitfs VERB --help",
    "skill": "",
}
"""Verbs of kit that kitfs does not have, with what to do instead."""


class VerbGroup(click.Group):
    """All verbs.

    Args:
        targets: ``module:attribute`` of each verb's command.
    """

    def __init__(self, *arguments: Any, targets: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.targets = targets

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in order of the alphabet."""
        return sorted(self.targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None when there is no such verb."""
        target = self.targets.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if COMPLETE_VARIABLE in os.environ:
            from kitfs.cli.completing import set_types

            set_types(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without any word, print the help and end well, as kit does."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; what is none is answered with what may have been meant."""
        word = args[0]
        if word not in self.targets and not word.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(_explain(word, list(self.targets)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs, a section for each topic."""
        placed = {name for names in TOPICS.values() for name in names}
        topics = TOPICS | {OTHERS: tuple(name for name in self.list_commands(ctx) if name not in placed)}
        width = max(map(len, self.targets))
        for topic, names in topics.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for name, command in commands.items()
                if command is not None
            ]
            if rows:
                with formatter.section(topic):
                    formatter.write_dl(rows)


def _explain(word: str, verbs: list[str]) -> str:
    if word in KIT_ONLY:
        instead = KIT_ONLY[word]
        return f"{word!r} is a verb of kit that kitfs does not have" + (f": {instead}." if instead else ".")
    import difflib

    near = difflib.get_close_matches(word, verbs, n=3, cutoff=0.6)
    meant = " or ".join(map(repr, near))
    return f"No such command {word!r}." + (f" Did you mean {meant}?" if near else "")
