"""Results of a measurement: medians over rounds, ratios to a reference of the same run, as a table and as JSON."""

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
        reference: The name of the line that this one is compared with, or an empty string.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    reference: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)


class Report:
    """Collects lines, in the order in which they first appear."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.lines: dict[str, Line] = {}

    def add(self, name: str, unit: str, value: float, *, reference: str = "") -> None:
        """One more value of a line."""
        self.lines.setdefault(name, Line(name, unit, reference=reference)).values.append(value)

    def ratio(self, line: Line) -> float | None:
        """A line's median over its reference's, or None when it has none."""
        reference = self.lines.get(line.reference)
        return line.median / reference.median if reference is not None and reference.median else None

    def encode_table(self) -> str:
        """Columns for people: name, median, smallest, largest, ratio."""
        rows = [["case " + self.case, "median", "min", "max", "unit", "ratio to reference"]]
        for line in self.lines.values():
            ratio = self.ratio(line)
            compared = f"{ratio:.2f} × {line.reference}" if ratio is not None else ""
            numbers = (f"{value:.1f}" for value in (line.median, min(line.values), max(line.values)))
            rows.append([line.name, *numbers, line.unit, compared])
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        align: list[Callable[[str, int], str]] = [str.ljust, str.rjust, str.rjust, str.rjust, str.ljust, str.ljust]
        return "\n".join(
            "   ".join(place(cell, width) for place, cell, width in zip(align, row, widths, strict=True)).rstrip()
            for row in rows
        )

    def encode_json(self) -> str:
        """The same for programs, with every round and what it ran on."""
        machine = {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count(),
                   "root": os.geteuid() == 0}  # fmt: skip
        lines = [
            {"name": line.name, "unit": line.unit, "median": line.median, "values": line.values,
             "reference": line.reference or None, "ratio": self.ratio(line)}
            for line in self.lines.values()
        ]  # fmt: skip
        return json.dumps({"case": self.case, "machine": machine, "lines": lines}, indent=1)

    def publish(self, path: Path | None) -> None:
        """Print the table, then the JSON: to ``path`` when there is one, else below the table."""
        print(self.encode_table())
        if path is None:
            print(self.encode_json())
        else:
            path.write_text(self.encode_json() + "\n")
