"""``kitfs doctor``: whether the machine has what kitfs needs, with the line that mends what it has not."""

from __future__ import annotations

from pathlib import Path

import click

from kitfs.cli.output import print_json, print_result, say
from kitfs.cli.settings import Settings, verb

_ENABLE = (
    "systemctl daemon-reload && systemctl enable --now kitfs.socket kitfs.service kitfs-gc.timer kitfs-scrub.timer"
)


@verb("doctor", short_help="Install the units of systemd.", examples=["sudo kitfs doctor --install-units"])
@click.option("--install-units", is_flag=True, help="Write systemd's units and link /sbin/mount.kitfs.")
@click.option("--root", type=click.Path(path_type=Path), default="/", metavar="DIRECTORY",
              help="Where to install (default: /).")  # fmt: skip
def doctor(settings: Settings, install_units: bool, root: Path) -> int:
    """Install the units of systemd."""
    if install_units:
        from kitfs.cli.units import find_program
        from kitfs.cli.units import install_units as install

        written = [str(path) for path in install(root, find_program())]
        if settings.json:
            print_json(written)
        else:
            for path in written:
                print_result(path)
            say(f"then: {_ENABLE}")
        return 0
    raise click.UsageError("doctor wants --install-units")
