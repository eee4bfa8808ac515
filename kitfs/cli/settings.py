"""Global options and the environment, and the decorator that makes a function a verb.

Every global option is accepted before and after the verb (``kitfs -q list`` and ``kitfs list -q``), as kit does.
Order: flag, environment, default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kitfs.cli.output import configure_logs
from kitfs.home import default_home, user_data

if TYPE_CHECKING:
    from kitfs.store.store import Store

    TextChoice = click.Choice[str]
else:
    TextChoice = click.Choice  # no subscript before click 8.2


def default_kitops_home() -> Path:
    """kit's home: ``$KITOPS_HOME``, else ``$XDG_DATA_HOME/kitops`` (kitops ``pkg/lib/constants``, Linux)."""
    if home := os.environ.get("KITOPS_HOME"):
        return Path(home).absolute()
    return user_data() / "kitops"


@dataclass
class Settings:
    """What holds for a whole command.

    Attributes:
        home: The store's folder.
        socket: The daemon's socket when it was named, else None (then it follows from ``home``).
        format: ``table`` or ``json``.
        quiet: Print ids only.
        log_level: ``error``, ``warn``, ``info`` or ``debug``; debug shows tracebacks.
        log_format: ``text``, or ``json``: all that is said on standard error is one object a line.
        flags: Options whose values come from flags.
        progress: ``none``, ``plain`` or ``fancy``.
        kitops_home: kit's home, which may not exist.
    """

    home: Path = field(default_factory=default_home)
    socket: Path | None = None
    format: str = "table"
    quiet: bool = False
    log_level: str = "warn"
    log_format: str = "text"
    flags: set[str] = field(default_factory=set)
    progress: str = field(default_factory=lambda: "fancy" if sys.stderr.isatty() else "plain")
    kitops_home: Path = field(default_factory=default_kitops_home)

    @property
    def json(self) -> bool:
        """Whether the result is to be printed as JSON."""
        return self.format == "json"

    def open_store(self, *, create: bool = True) -> Store:
        """The store at ``home``; made when it is absent and ``create`` is set.

        Raises:
            KitfsError: when it is absent (``create=False``), of a newer format, or somebody else's.
        """
        from kitfs.store.store import Store

        return Store.open(self.home, create=create)


class _Form(TextChoice):
    """The forms of a result; kit's Go templates are answered with what there is instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """One of the choices."""
        if isinstance(value, str) and "{{" in value:
            self.fail("Go templates are not supported; --format json has all that they could name", param, ctx)
        return super().convert(value, param, ctx)


_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--home",), {"type": click.Path(path_type=Path), "help": "The store's folder (default: $KITFS_HOME)."}),
    (("--socket",), {"type": click.Path(path_type=Path), "help": "The daemon's socket.", "envvar": "KITFS_SOCKET"}),
    (("--format",), {"type": _Form(["table", "json"]), "help": "Form of the result."}),
    (("-q", "--quiet"), {"is_flag": True, "default": None, "help": "Print ids only."}),
    (("-v", "--verbose"), {"is_flag": True, "default": None, "help": "Say more (as --log-level info)."}),
    (("--log-level",), {"type": click.Choice(["error", "warn", "info", "debug"]), "envvar": "KITFS_LOG_LEVEL",
                        "help": "How much to say; debug shows tracebacks."}),
    (("--log-format",), {"type": click.Choice(["text", "json"]), "envvar": "KITFS_LOG_FORMAT",
                         "help": "Form of all that is said beside the result."}),
    (("--progress",), {"type": click.Choice(["none", "plain", "fancy"]), "help": "How to show progress."}),
]  # fmt: skip


_GLOBAL = {names[-1].removeprefix("--").replace("-", "_") for names, _ in _OPTIONS}


class _Verb(click.Command):
    """A verb, whose help has its own options first and those of all verbs after them, as kit's."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both sections."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Global options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record:
                sections["Global options" if parameter.name in _GLOBAL else "Options"].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _store_option(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is None or parameter.name is None:
        return
    if context.parent is not None and context.get_parameter_source(parameter.name) is not ParameterSource.COMMANDLINE:
        return  # the group has looked at the environment already, and a flag before the verb wins over it
    settings = context.ensure_object(Settings)
    if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        settings.flags.add(parameter.name)
    if parameter.name == "verbose":
        settings.log_level = "info"
    elif parameter.name in ("home", "socket") and isinstance(value, Path):
        setattr(settings, parameter.name, value.absolute())
    else:
        setattr(settings, parameter.name, value)


def global_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the global options; they land in the context's ``Settings`` and not in its arguments."""
    for names, attributes in reversed(_OPTIONS):
        function = click.option(*names, expose_value=False, callback=_store_option, **attributes)(function)
    return function


def verb(
    name: str, *, examples: Sequence[str] = (), **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a verb: it gets ``Settings`` first, then its own arguments.

    Args:
        name: The verb.
        examples: Command lines that end its help.
        attributes: What ``click.command`` takes.
    """
    if examples:
        attributes["epilog"] = "\n  ".join(["\b\nExamples:", *examples])

    def decorate(function: Callable[..., Any]) -> click.Command:
        def run(*arguments: Any, **options: Any) -> Any:
            settings = click.get_current_context().ensure_object(Settings)
            configure_logs(settings.log_format, settings.log_level)
            return function(settings, *arguments, **options)

        run.__doc__ = function.__doc__
        vars(run)["__click_params__"] = getattr(function, "__click_params__", [])
        return click.command(name, cls=_Verb, **attributes)(global_options(run))

    return decorate
