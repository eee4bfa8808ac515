"""Damage of one bit, what a reader may make of it, and a table of what it did.

A test asks the fixture ``specimen`` for a store, gives a ``Flip`` to ``rot.examine`` and gets a ``Verdict``; it hands
all its verdicts to ``record_verdicts``. The table is printed when the run is over, also with pytest-xdist.
"""

import collections
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import zstandard

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.layer.spans import SPAN_SIZE
from kitfs.store.findings import FsckReport
from kitfs.store.fsck import check
from kitfs.store.repair import repair
from kitfs.store.store import Store

_SPEC = importlib.util.spec_from_file_location("rot_specimen", Path(__file__).with_name("specimen.py"))
rot_specimen = importlib.util.module_from_spec(_SPEC)
sys.modules["rot_specimen"] = rot_specimen
_SPEC.loader.exec_module(rot_specimen)
Layer, Specimen = rot_specimen.Layer, rot_specimen.Specimen
fresh_pool, flip_bit = rot_specimen.fresh_pool, rot_specimen.flip_bit

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")


@dataclass
class Flip:
    """One bit of one object, ready to be flipped.

    Attributes:
        kind: Row of the table.
        place: Where, for the message of a failure.
        apply: Flips it on disk.
        undo: Puts everything back as it was before, whatever a repair did meanwhile.
        damage: Damages that a check may name it by; empty when it is none that a check can see.
        names: What a check has to name, one of these.
        touches: Whether a range ``(layer, member, start, stop)`` may be an error; all others must be right.
        layers: Layers that are read.
        blob: A small blob that is read whole and must be refused.
        mends: Whether a repair must mend it, so that all is right and clean afterwards.
        reads: Whether anything is read before the repair.
        materialise: Whether what is read becomes a file.
    """

    kind: str
    place: str
    apply: Callable[[], None]
    undo: Callable[[], None]
    damage: frozenset[str]
    names: tuple[str, ...]
    touches: Callable[[Layer, int, int, int], bool]
    layers: list[Layer]
    blob: bytes | None = None
    mends: bool = False
    reads: bool = True
    materialise: Materialise = Materialise.NEVER


@dataclass
class Verdict:
    """What came of one flip.

    Attributes:
        right: Ranges that read right.
        refused: Ranges that were a named error.
        silent: Ranges with wrong bytes.
        unnamed: Errors of no name.
        overreach: Ranges that the flip does not touch and that were an error.
        is_found: Whether the check named it.
        is_mended: Whether a repair mended it, or said what is lost; None when none was tried.
    """

    place: str
    right: int = 0
    refused: int = 0
    silent: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    overreach: list[str] = field(default_factory=list)
    is_found: bool = True
    is_mended: bool | None = None

    @property
    def faults(self) -> list[str]:
        found = [f"silent: {what}" for what in self.silent]
        found += [f"unnamed: {what}" for what in self.unnamed]
        found += [f"untouched, but refused: {what}" for what in self.overreach]
        if not self.is_found:
            found.append("not named by the check")
        if self.is_mended is False:
            found.append("not mended by the repair")
        return [f"{self.place}: {what}" for what in found]


def examine(specimen: Specimen, flip: Flip, rng: random.Random, *, repairs: bool = True) -> Verdict:
    """Flip, check, read everything by a fresh store and reader, repair, look again, undo."""
    verdict = Verdict(flip.place)
    flip.apply()
    try:
        with Store.open(specimen.home) as store:
            if flip.names:
                verdict.is_found = _is_named(check(store, read_data=True), flip)
            if flip.reads:
                read_layers(store, flip, verdict, rng)
        if repairs and flip.names:
            with Store.open(specimen.home) as store:
                report = repair(store, read_data=True)
                verdict.is_mended = _is_mended(store, flip, report, rng)
    finally:
        flip.undo()
    return verdict


def read_layers(store: Store, flip: Flip, verdict: Verdict, rng: random.Random) -> None:
    """Read all ranges of all members as a process does that has just started."""
    if flip.blob is not None:
        try:
            found = store.read_blob(Digest.of(flip.blob))
        except KitfsError:
            verdict.refused += 1
        else:
            verdict.right += found == flip.blob
            verdict.silent += [] if found == flip.blob else ["a blob read whole"]
    for layer in flip.layers:
        with fresh_pool():
            _Reading(flip, layer, verdict, rng).read(store)


@dataclass
class _Reading:
    flip: Flip
    layer: Layer
    verdict: Verdict
    rng: random.Random

    def read(self, store: Store) -> None:
        try:
            reader = LayerReader(store, self.layer.digest, materialise=self.flip.materialise)
        except BaseException as error:  # noqa: BLE001  # the verdict is what is asked for
            self._refuse(0, 0, 0, error)
            return
        with reader:
            for number, data in enumerate(self.layer.files):
                if data is not None:
                    self._read_member(reader, number, data)

    def _read_member(self, reader: LayerReader, number: int, data: bytes) -> None:
        try:
            member = reader.open_member(number)
        except BaseException as error:  # noqa: BLE001  # as above
            self._refuse(number, 0, len(data), error)
            return
        for start, stop in ranges(len(data), self.rng):
            try:
                ready = member.read_ready(start, stop)
                found = bytes(member.read(start, stop))
            except BaseException as error:  # noqa: BLE001  # as above
                self._refuse(number, start, stop, error)
                continue
            self.verdict.right += found == data[start:stop]
            if found != data[start:stop] or (ready is not None and bytes(ready) != found):
                self.verdict.silent.append(self._place(number, start, stop))

    def _refuse(self, number: int, start: int, stop: int, error: BaseException) -> None:
        self.verdict.refused += 1
        if not isinstance(error, KitfsError):
            self.verdict.unnamed.append(f"{self._place(number, start, stop)}: {error!r}")
        elif not self.flip.touches(self.layer, number, start, stop):
            self.verdict.overreach.append(f"{self._place(number, start, stop)}: {error}")

    def _place(self, number: int, start: int, stop: int) -> str:
        return f"{self.layer.name}[{number}] [{start}, {stop})"


def _is_mended(store: Store, flip: Flip, report: FsckReport, rng: random.Random) -> bool:
    """Whether a repair mended what it must, and else has said what is lost."""
    if not flip.mends:
        return report.exit_code == 6 or not report.problems
    again = Verdict(flip.place)
    read_layers(store, flip, again, rng)
    return not report.problems and not again.refused and not again.faults


def _is_named(report: FsckReport, flip: Flip) -> bool:
    return any(
        finding.damage in flip.damage and any(name in finding.name for name in flip.names)
        for finding in report.problems
    )


def ranges(size: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """All of a file in pieces, one after another, and the whole last: it must not hide what pieces would show."""
    step = rng.choice((16_384, 40_000))
    for start in range(0, size, step):
        yield start, min(start + step, size)
    start = rng.randrange(size + 1)
    yield start, min(size, start + rng.choice((1, 4096, SPAN_SIZE)))
    yield 0, size


class SpanTouch:
    """Which ranges of a layer a flip in its published bytes may break, by the layer's own span map."""

    def __init__(self, specimen: Specimen, layer: Layer) -> None:
        self.layer = layer
        self.spans = None
        with Store.open(specimen.home) as store, LayerReader(store, layer.digest) as reader:
            if reader._lazy is not None:
                self.spans = reader._lazy.spans

    def by_byte(self, at: int) -> Callable[[Layer, int, int, int], bool]:
        """What a flip of published byte ``at`` touches."""
        if self.spans is not None:
            broken = [
                span
                for span in range(self.spans.count)
                if self.spans.published_range(span)[0] <= at < self.spans.published_range(span)[1]
            ]
            return self.by_spans(broken)
        if self.layer.index.record.compression == "none":
            return lambda _, number, start, stop: self._touches_plain(at, number, start, stop)
        good = self._count_decoded(at)
        toc = self.layer.index.toc
        return lambda _, number, start, stop: toc[number].size > 0 and toc[number].offset + toc[number].size > good

    def by_spans(self, broken: list[int]) -> Callable[[Layer, int, int, int], bool]:
        """What is touched when these spans can not be decoded."""
        places = [self.spans.range(span) for span in broken]
        toc = self.layer.index.toc

        def touches(_: Layer, number: int, start: int, stop: int) -> bool:
            offset = toc[number].offset
            return any(offset + start < high and low < offset + stop for low, high in places)

        return touches

    def _touches_plain(self, at: int, number: int, start: int, stop: int) -> bool:
        place = at - self.layer.index.toc[number].offset
        if not 0 <= place < self.layer.index.toc[number].size:
            return False
        low = place // SPAN_SIZE * SPAN_SIZE
        return start < low + SPAN_SIZE and low < stop

    def _count_decoded(self, at: int) -> int:
        """Decoded bytes that the published ones before a byte give for sure, of a stream without spans."""
        decoder = zstandard.ZstdDecompressor().decompressobj()
        return len(decoder.decompress(self.layer.published[:at]))


@pytest.fixture(scope="session")
def rot_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rot") / "home"


@pytest.fixture(scope="session")
def specimen(rot_home: Path) -> Specimen:
    """The store; a test leaves it as it found it."""
    return Specimen(rot_home)


@pytest.fixture(scope="session")
def rot() -> ModuleType:
    """This module: what tests need of it by name."""
    return sys.modules[__name__]


@pytest.fixture
def record_verdicts(record_property):
    """``record_verdicts(kind, verdicts, seconds)``: a row of the table; fails when any verdict has a fault."""

    def record(kind: str, verdicts: list[Verdict], started_s: float) -> None:
        refused = sum(verdict.refused > 0 for verdict in verdicts)
        row = {
            "kind": kind,
            "flips": len(verdicts),
            "all right": len(verdicts) - refused,
            "EIO in part": refused,
            "silent": sum(bool(verdict.silent) for verdict in verdicts),
            "unnamed": sum(bool(verdict.unnamed) for verdict in verdicts),
            "overreach": sum(bool(verdict.overreach) for verdict in verdicts),
            "not found": sum(not verdict.is_found for verdict in verdicts),
            "repairs": sum(verdict.is_mended is not None for verdict in verdicts),
            "not mended": sum(verdict.is_mended is False for verdict in verdicts),
            "ranges": sum(verdict.right + verdict.refused for verdict in verdicts),
            "s": round(time.monotonic() - started_s, 1),
        }
        record_property("rot", json.dumps(row))
        faults = [fault for verdict in verdicts for fault in verdict.faults]
        assert not faults, f"{len(faults)} faults, the first: " + "\n".join(faults[:10])

    return record


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what came of all flips."""
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "rot" and getattr(report, "when", "") == "call"
    ]
    if not rows:
        return
    total = collections.Counter()
    for row in rows:
        total.update({name: value for name, value in row.items() if name != "kind"})
    headers = list(rows[0])
    table = [[str(row[name]) for name in headers] for row in sorted(rows, key=lambda row: row["kind"])]
    table.append(["total", *(f"{total[name]:g}" for name in headers[1:])])
    widths = [max(len(line[at]) for line in [headers, *table]) for at in range(len(headers))]
    terminalreporter.section("one bit flipped")
    for line in [headers, *table]:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
