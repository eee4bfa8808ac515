"""Verbs about the store itself: ``gc`` and ``fsck``. Parse, call, print, exit code; nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json, print_result, print_table, say
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.store.findings import FsckReport
    from kitfs.store.gc import GcReport


@verb("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@click.option("--grace", "grace_s", type=click.IntRange(min=0), default=0, show_default=True, metavar="SECONDS",
              help="Keep what was added or used less than so many seconds ago.")  # fmt: skip
def gc(settings: Settings, dry_run: bool, grace_s: int) -> None:
    """Remove what no tag, mount or running operation needs."""
    from kitfs.store.gc import gc as collect

    with settings.open_store(create=False) as store:
        report = collect(store, dry_run=dry_run, grace_s=grace_s)
    _print_gc(settings, report)


def _print_gc(settings: Settings, report: GcReport) -> None:
    if settings.json:
        victims = [
            {"kind": victim.kind, "name": victim.name, "size": victim.size, "reason": victim.reason}
            for victim in report.victims
        ]
        print_json({"dryRun": report.dry_run, "size": report.size, "kept": report.kept, "removed": victims})
        return
    if settings.quiet:
        for victim in report.victims:
            print_result(victim.name)
        return
    if report.victims:
        rows = [(victim.kind, victim.name, str(victim.size), victim.reason) for victim in report.victims]
        print_table(("KIND", "NAME", "SIZE", "REASON"), rows)
    will = "would be" if report.dry_run else "were"
    say(f"{len(report.victims)} things, {report.size} bytes {will} removed; {report.kept} blobs and members stay")


@verb("fsck")
@click.option("--read-data", is_flag=True, help="Also hash every blob and member, and compare partials.")
@click.option("--repair", is_flag=True, help="Make anew what can be; move corrupt blobs to quarantine/.")
@click.option("--rebuild-index", "rebuild", is_flag=True,
              help="Make the index anew from the files, reading all of them; nothing may be mounted.")  # fmt: skip
def fsck(settings: Settings, read_data: bool, repair: bool, rebuild: bool) -> None:
    """Check the store. Exit code 0: clean, 1: repaired or to be repaired, 6: something is lost."""
    if rebuild:
        report = _rebuild(settings, repair)
    else:
        from kitfs.modelkit.image_indexes import repair as repair_store
        from kitfs.store.fsck import check

        with settings.open_store(create=False) as store:
            report = (repair_store if repair else check)(store, read_data=read_data)
            if read_data:
                from kitfs.layer.partial_check import check_partials

                check_partials(store, report, repair=repair)
    _print_fsck(settings, report)
    if report.exit_code:
        raise SystemExit(report.exit_code)


def _rebuild(settings: Settings, repair: bool) -> FsckReport:
    """Make the index anew; with ``repair`` mend what is then still wrong and can be."""
    from kitfs.modelkit.image_indexes import repair as repair_store
    from kitfs.modelkit.rebuild import rebuild_index

    with show_progress(settings.progress) as progress:
        report = rebuild_index(settings.home, progress)
    if repair:
        with settings.open_store(create=False) as store:
            after = repair_store(store)
        after.repaired = report.repaired + after.repaired
        lost = {(finding.damage, finding.name) for finding in after.findings}
        after.findings += [item for item in report.findings if item.weight.value == "lost" and
                           (item.damage, item.name) not in lost]  # fmt: skip
        after.size_read = report.size_read
        report = after
    return report


def _print_fsck(settings: Settings, report: FsckReport) -> None:
    found = [(finding, finding.weight.value) for finding in report.findings]
    found += [(finding, "repaired") for finding in report.repaired]
    if settings.json:
        findings = [
            {"damage": finding.damage, "name": finding.name, "detail": finding.detail, "state": state}
            for finding, state in found
        ]
        counts = {"blobs": report.blobs, "members": report.members, "sizeRead": report.size_read}
        print_json({**counts, "exitCode": report.exit_code, "findings": findings})
        return
    if settings.quiet:
        for finding, _ in found:
            print_result(finding.name)
        return
    if found:
        rows = [(state, finding.damage, finding.name, finding.detail) for finding, state in found]
        print_table(("STATE", "DAMAGE", "NAME", "DETAIL"), rows)
    say(f"{report.blobs} blobs and {report.members} members checked: {_verdict(report)}")


def _verdict(report: FsckReport) -> str:
    if report.exit_code == 6:
        return "something is lost"
    if report.problems:
        return "to be repaired (--repair)"
    return "repaired" if report.repaired else "clean"
