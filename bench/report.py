"""Results of a measurement: medians over rounds, ratios to references of the same run, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Line:
    """One measured thing.

    Attributes:
        name: What was measured.
        unit: Of the values.
        values: One for each round.
        references: Names of the lines that this one is compared with.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    references: tuple[str, ...] = ()

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)


class Report:
    """Collects lines, in the order in which they first appear, and notes: what is no number, or was left out."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.lines: dict[str, Line] = {}
        self.notes: list[str] = []

    def add(self, name: str, unit: str, value: float, *, reference: str | tuple[str, ...] = ()) -> None:
        """One more value of a line."""
        references = (reference,) if isinstance(reference, str) else reference
        self.lines.setdefault(name, Line(name, unit, references=references)).values.append(value)

    def note(self, text: str) -> None:
        """One more note, unless it is there."""
        if text not in self.notes:
            self.notes.append(text)

    def ratios(self, line: Line) -> dict[str, float]:
        """A line's median over that of each of its references that was measured and is not 0."""
        medians = {name: self.lines[name].median for name in line.references if name in self.lines}
        return {name: line.median / median for name, median in medians.items() if median}

    def encode_table(self) -> str:
        """Columns for people: name, median, smallest, largest, ratios; then the notes."""
        rows = [["case " + self.case, "median", "min", "max", "unit", "ratio to reference"]]
        for line in self.lines.values():
            compared = "; ".join(f"{ratio:.2f} × {name.strip()}" for name, ratio in self.ratios(line).items())
            values = (line.median, min(line.values), max(line.values))
            places = 3 if max(line.values) < 10 else 1
            rows.append([line.name, *(f"{value:.{places}f}" for value in values), line.unit, compared])
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        align: list[Callable[[str, int], str]] = [str.ljust, str.rjust, str.rjust, str.rjust, str.ljust, str.ljust]
        table = [
            "   ".join(place(cell, width) for place, cell, width in zip(align, row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*table, *(f"note: {note}" for note in self.notes)])

    def encode_json(self) -> str:
        """The same for programs, with every round and what it ran on."""
        machine = {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count(),
                   "root": os.geteuid() == 0}  # fmt: skip
        lines = [
            {"name": line.name, "unit": line.unit, "median": line.median, "values": line.values,
             "ratios": self.ratios(line)}
            for line in self.lines.values()
        ]  # fmt: skip
        encoded = {"case": self.case, "machine": machine, "notes": self.notes, "lines": lines}
        return json.dumps(encoded, indent=1, ensure_ascii=False)

    def publish(self, path: Path | None) -> None:
        """Print the table, then the JSON: to ``path`` when there is one, else below the table."""
        print(self.encode_table())
        if path is None:
            print(self.encode_json())
        else:
            path.write_text(self.encode_json() + "\n")
