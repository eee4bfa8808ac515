"""Runs whole commands and says what they took; finds the program that kitfs is compared with, kit.

Used by the cases that compare verbs. kit is what ``KIT`` names, or the ``kit`` on the path; without one its lines are
left out, with a note.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Cpu
from bench.report import Report

KIT_VARIABLE = "KIT"


@dataclass(frozen=True, slots=True)
class Run:
    """What a command took.

    Attributes:
        elapsed_s: From its start to its end.
        cpu: Of it and its children.
        rss_mib: Its largest resident memory.
    """

    elapsed_s: float
    cpu: Cpu
    rss_mib: float


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end; its output is dropped.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    words = [str(word) for word in command]
    start = time.monotonic()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    elapsed_s = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return Run(elapsed_s, Cpu(used.ru_utime, used.ru_stime), used.ru_maxrss / 1024)


def find_kit(report: Report) -> str | None:
    """The kit to compare with, noted in the report, as is that there is none."""
    found = os.environ.get(KIT_VARIABLE) or shutil.which("kit")
    if found is None:
        report.note(f"there is no kit on the path and {KIT_VARIABLE} names none: what compares with it is left out")
        return None
    version = subprocess.run([found, "version"], capture_output=True, text=True, check=True).stdout.splitlines()
    report.note(f"compared with kit: {version[0] if version else 'no version'}")
    return found
