"""Entry of ``kitfs``: finds the verb, imports only its file, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from kitfs import errors
from kitfs.cli.settings import Settings, global_options

VERBS = {
    "daemon": "kitfs.cli.mounts:daemon",
    "diff": "kitfs.cli.comparing:diff",
    "fsck": "kitfs.cli.storage:fsck",
    "gc": "kitfs.cli.storage:gc",
    "import": "kitfs.cli.transfers:import_",
    "init": "kitfs.cli.initialising:init",
    "list": "kitfs.cli.tags:list_",
    "mount": "kitfs.cli.mounts:mount",
    "pack": "kitfs.cli.packing:pack",
    "prefetch": "kitfs.cli.prefetching:prefetch",
    "ps": "kitfs.cli.mounts:ps",
    "remove": "kitfs.cli.tags:remove",
    "tag": "kitfs.cli.tags:tag",
    "umount": "kitfs.cli.mounts:umount",
    "verify": "kitfs.cli.verifying:verify",
    "version": "kitfs.cli.main:version",
}

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (errors.UsageError, 2),
    (errors.NotFoundError, 3),
    (errors.IntegrityError, 6),
    (errors.BusyError, 7),
    (errors.DaemonError, 8),
    (errors.FuseError, 9),
]
"""First match decides; every other failure is 1, an interrupt 130."""


class LazyGroup(click.Group):
    """A group that imports a verb's file when the verb is asked for, so that start-up stays short."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in order of the alphabet."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None when there is no such verb."""
        target = VERBS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(version_line())
        context.exit()


def version_line() -> str:
    """``kitfs <version>``."""
    from kitfs import __version__

    return f"kitfs {__version__}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Print the version.")  # fmt: skip
@global_options
def cli() -> None:
    """Mount ModelKits: plain read-only files, verified, stored once."""


@click.command("version")
def version() -> None:
    """Print the version."""
    click.echo(version_line())


def exit_code(error: BaseException) -> int:
    """The exit code for an error that left a verb."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _report(error: BaseException, settings: Settings) -> None:
    if settings.log_level == "debug":
        import traceback

        traceback.print_exception(error)
    click.echo(f"kitfs: {error}", err=True)
    if hint := getattr(error, "hint", ""):
        click.echo(f"  {hint}", err=True)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Nothing is raised."""
    settings = Settings()
    try:
        result: Any = cli.main(args=arguments, prog_name="kitfs", standalone_mode=False, obj=settings)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kitfs: interrupted", err=True)
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except errors.KitfsError as error:
        _report(error, settings)
        return exit_code(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _report(error, settings)
        return 1
    except Exception as error:  # noqa: BLE001 - the last border: a bug is a message, not a traceback
        _report(error, settings)
        click.echo("  this is a bug in kitfs; --log-level debug shows where", err=True)
        return 1
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Run the command line of this process and end it.

    Everything that a verb holds is given back when it returns, so the interpreter is not taken down piece by
    piece: 6 ms of a ``kitfs mount``.
    """
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)
