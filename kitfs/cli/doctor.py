"""``kitfs doctor``: whether the machine has what kitfs needs, with the line that mends what it has not."""

from __future__ import annotations

from pathlib import Path

import click

from kitfs.cli.output import encode_table, print_json, print_result, say
from kitfs.cli.settings import Settings, verb

_ENABLE = (
    "systemctl daemon-reload && systemctl enable --now kitfs.socket kitfs.service kitfs-gc.timer kitfs-scrub.timer"
)


@verb("doctor", short_help="Check what kitfs needs of the machine.",
      examples=["kitfs doctor", "sudo kitfs doctor --install-units"])  # fmt: skip
@click.option("--install-units", is_flag=True, help="Write systemd's units and link /sbin/mount.kitfs instead.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIRECTORY",
              help="Where --install-units writes (default: /).")  # fmt: skip
def doctor(settings: Settings, install_units: bool, root: Path | None) -> int:
    """Check what kitfs needs of the machine, and print the line that mends what is missing.

    Exit code 1 when something does not work; 0 when all does, or is only less than it could be (warn). With -q the
    names of what is not ok are printed.
    """
    if install_units:
        _install(settings, root or Path("/"))
        return 0
    if root is not None:
        raise click.UsageError("--root goes with --install-units")
    from kitfs.cli.checkup import examine

    findings = examine(settings)
    if settings.json:
        print_json([finding._asdict() for finding in findings])
    elif settings.quiet:
        for finding in findings:
            if finding.state != "ok":
                print_result(finding.check)
    else:
        rows = [[one.check, one.state, one.detail, one.mend] for one in findings]
        table = encode_table(["CHECK", "STATE", "DETAIL", "WHAT MENDS IT"], rows)
        print_result("\n".join(line.rstrip() for line in table.splitlines()))
    return int(any(finding.state == "fail" for finding in findings))


def _install(settings: Settings, root: Path) -> None:
    from kitfs.cli.units import find_program, install_units

    written = [str(path) for path in install_units(root, find_program())]
    if settings.json:
        print_json(written)
        return
    for path in written:
        print_result(path)
    say(f"then: {_ENABLE}")
