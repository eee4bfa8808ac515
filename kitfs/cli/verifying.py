"""Verb ``verify``: all that a mount of a ModelKit would read, hashed and proven. Parse, call, print, exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.output import format_size, print_json, print_result, print_table, say
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb

if TYPE_CHECKING:
    from kitfs.modelkit.verify import Part, VerifyReport

CODE_CORRUPT = 6


@verb("verify", short_help="Check all that a ModelKit needs, by its digests.", examples=["kitfs verify myllm:3.1.4"])
@click.argument("reference")
def verify(settings: Settings, reference: str) -> None:
    """Hash all that REFERENCE needs: manifest, config, layers, members that are stored, and its parents' models.

    Every span of a layer is decoded as a mount does it and compared. Exit code 0: all is right, 6: something is not,
    and the line says what mends it. With -q only the digests of what is not right are printed.
    """
    from kitfs.modelkit.verify import verify as verify_kit
    from kitfs.oci.reference import parse_reference

    parsed = parse_reference(reference)
    with settings.open_store(create=False) as store, show_progress(settings.progress) as progress:
        report = verify_kit(store, parsed, progress)
    _print(settings, report)
    if not report.is_right:
        raise SystemExit(CODE_CORRUPT)


def _print(settings: Settings, report: VerifyReport) -> None:
    if settings.json:
        parts = [_encode(part) for part in report.parts]
        print_json({"digest": str(report.manifest), "right": report.is_right, "parts": parts})
    elif settings.quiet:
        for digest in dict.fromkeys(str(part.verdict.digest) for part in report.parts if part.verdict.damages):
            print_result(digest)
    else:
        print_table(("STATE", "KIT", "PART", "DIGEST", "SIZE", "DETAIL"), [_row(part) for part in report.parts])
        say("all is right" if report.is_right else "something is not right")


def _encode(part: Part) -> dict[str, object]:
    verdict = part.verdict
    return {
        "kit": part.kit,
        "part": part.what,
        "form": part.form,
        "digest": str(verdict.digest),
        "size": verdict.size,
        "members": verdict.members,
        "spans": verdict.spans,
        "stored": verdict.native,
        "damages": [{"reason": damage.reason, "mend": damage.mend} for damage in verdict.damages],
    }


def _row(part: Part) -> tuple[str, ...]:
    verdict = part.verdict
    if verdict.damages:
        detail = "; ".join(f"{damage.reason} (mend: {damage.mend})" for damage in verdict.damages)
    elif part.form:
        detail = f"{part.form}, {verdict.members} files, {verdict.spans} spans, {verdict.native} stored"
    else:
        detail = ""
    state = "damaged" if verdict.damages else "right"
    return state, part.kit, part.what, str(verdict.digest), format_size(verdict.size), detail
