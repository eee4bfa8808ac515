"""What a check finds: kinds of damage, their weight, and the report's exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Weight(Enum):
    """How bad a finding is."""

    NOTE = "note"
    """Nothing is wrong: a leftover that GC removes, or content that nobody refers to."""
    REPAIRABLE = "repairable"
    """Derived data is wrong; it can be made anew from what is there."""
    LOST = "lost"
    """Content is gone or wrong, and nothing in the store has it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes:
        damage: The class of damage, as ``missing-blob``.
        name: What is damaged: a digest, a tag, a file.
        detail: What is wrong with it.
        weight: How bad it is.
    """

    damage: str
    name: str
    detail: str
    weight: Weight


@dataclass(slots=True)
class FsckReport:
    """What a check found, and what a repair did about it.

    Attributes:
        findings: What is (still) wrong, notes included.
        repaired: What was wrong and has been repaired.
        blobs: Blobs checked.
        members: Members checked.
        size_read: Bytes hashed.
    """

    findings: list[Finding] = field(default_factory=list)
    repaired: list[Finding] = field(default_factory=list)
    blobs: int = 0
    members: int = 0
    size_read: int = 0

    @property
    def problems(self) -> list[Finding]:
        """Findings that are more than notes."""
        return [finding for finding in self.findings if finding.weight is not Weight.NOTE]

    @property
    def exit_code(self) -> int:
        """0 clean, 1 repaired or to be repaired, 6 something is lost (cli.md 2)."""
        if any(finding.weight is Weight.LOST for finding in self.findings):
            return 6
        return 1 if self.problems or self.repaired else 0
