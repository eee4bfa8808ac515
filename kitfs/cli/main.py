"""Entry of ``kitfs``: finds the verb, imports only its file, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from kitfs import errors
from kitfs.cli.group import COMPLETE_VARIABLE, VerbGroup
from kitfs.cli.output import report, speak
from kitfs.cli.settings import Settings, global_options

VERBS = {
    "commit": "kitfs.cli.committing:commit",
    "completion": "kitfs.cli.about:completion",
    "daemon": "kitfs.cli.mounts:daemon",
    "diff": "kitfs.cli.comparing:diff",
    "doctor": "kitfs.cli.doctor:doctor",
    "du": "kitfs.cli.usage:du",
    "export": "kitfs.cli.exporting:export",
    "fsck": "kitfs.cli.storage:fsck",
    "gc": "kitfs.cli.storage:gc",
    "import": "kitfs.cli.transfers:import_",
    "info": "kitfs.cli.inspecting:info",
    "init": "kitfs.cli.initialising:init",
    "inspect": "kitfs.cli.inspecting:inspect",
    "list": "kitfs.cli.listing:list_",
    "log": "kitfs.cli.history:log",
    "login": "kitfs.cli.registries:login",
    "logout": "kitfs.cli.registries:logout",
    "mount": "kitfs.cli.mounts:mount",
    "pack": "kitfs.cli.packing:pack",
    "prefetch": "kitfs.cli.prefetching:prefetch",
    "ps": "kitfs.cli.ps:ps",
    "pull": "kitfs.cli.registries:pull",
    "push": "kitfs.cli.registries:push",
    "remove": "kitfs.cli.tags:remove",
    "staging": "kitfs.cli.staging:staging",
    "status": "kitfs.cli.status:status",
    "tag": "kitfs.cli.tags:tag",
    "umount": "kitfs.cli.unmounting:umount",
    "unpack": "kitfs.cli.unpacking:unpack",
    "verify": "kitfs.cli.verifying:verify",
    "version": "kitfs.cli.about:version",
}

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (errors.UsageError, 2),
    (errors.NotFoundError, 3),
    (errors.AuthenticationError, 4),
    (errors.NetworkError, 5),
    (errors.IntegrityError, 6),
    (errors.BusyError, 7),
    (errors.DaemonError, 8),
    (errors.FuseError, 9),
]
"""First match decides; every other failure is 1, an interrupt 130."""


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    from kitfs import __version__

    if value:
        click.echo(f"kitfs {__version__}")
        context.exit()


@click.group(cls=VerbGroup, targets=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Print the version.")  # fmt: skip
@global_options
def cli() -> None:
    """Mount ModelKits: plain files, verified, stored once; commit what changed as new ones.

    kitfs VERB --help says more about a verb.
    """


def exit_code(error: BaseException) -> int:
    """The exit code for an error that left a verb."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _report(error: BaseException, settings: Settings, hint: str = "") -> None:
    trace = ""
    if settings.log_level == "debug":
        import traceback

        trace = "".join(traceback.format_exception(error))
    report(str(error), getattr(error, "hint", "") or hint, trace)


def _report_usage(error: click.ClickException, settings: Settings, arguments: list[str]) -> None:
    """Say what is wrong with a command line, whose options may not have been looked at."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    if settings.log_format == "json" or ("--log-format", "json") in pairs or "--log-format=json" in arguments:
        speak("json")
        report(error.format_message())
    else:
        error.show()


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Nothing is raised."""
    settings = Settings()
    speak("text")
    if COMPLETE_VARIABLE in os.environ:
        from kitfs.cli.completing import register

        register()
    try:
        result: Any = cli.main(args=arguments, prog_name="kitfs", standalone_mode=False, obj=settings)
    except click.ClickException as error:
        _report_usage(error, settings, arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        report("interrupted")
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
        _report(error, settings, "this is a bug in kitfs; --log-level debug shows where")
        return 1
    return result if isinstance(result, int) else 0


def _run_process() -> int:
    if sys.argv[0].endswith("mount.kitfs"):
        from kitfs.cli.fstab import is_mount_helper, run_mount_helper

        if is_mount_helper(sys.argv[0]):
            return run_mount_helper(sys.argv[1:], run)
    return run(sys.argv[1:])


def main() -> NoReturn:
    """Run the command line of this process and end it.

    Everything that a verb holds is given back when it returns, so the interpreter is not taken down piece by
    piece: 6 ms of a ``kitfs mount``.
    """
    code = _run_process()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)
