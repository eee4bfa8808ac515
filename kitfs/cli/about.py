"""``kitfs version`` and ``completion``: what kitfs says about itself."""

from __future__ import annotations

import platform

import click

from kitfs.cli.output import print_json, print_result
from kitfs.cli.settings import Settings, verb


@verb("version", short_help="Print the version.")
def version(settings: Settings) -> None:
    """Print the versions of kitfs, Python and the kernel, a line each as kit does; with -q that of kitfs alone."""
    from kitfs import __version__

    if settings.json:
        print_json({"version": __version__, "python": platform.python_version(), "kernel": platform.release()})
    elif settings.quiet:
        print_result(__version__)
    else:
        print_result(f"Version: {__version__}")
        print_result(f"Python version: {platform.python_version()}")
        print_result(f"Kernel: {platform.system()} {platform.release()}")


@verb(
    "completion",
    examples=[
        "source <(kitfs completion bash)",
        "kitfs completion bash > /etc/bash_completion.d/kitfs",
        'kitfs completion zsh > "${fpath[1]}/_kitfs"',
        "kitfs completion fish > ~/.config/fish/completions/kitfs.fish",
    ],
    short_help="Print a script that completes kitfs in a shell.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(settings: Settings, shell: str) -> None:
    """Print a script for SHELL that completes verbs, options, references of the store and mount points."""
    from kitfs.cli.completing import encode_script

    print_result(encode_script(shell))
