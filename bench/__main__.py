"""``python -m bench CASE [--json FILE]``: one measurement, several rounds, medians.

Cases: ``mount`` (from command to ``ls``), ``read`` (through a mount against the local disk), ``memory``, ``gzip`` (a
gzip kit read without unpacking it, against unpacking it), ``many`` (200 000 small files).
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

CASES = ("mount", "read", "memory", "gzip", "many")


def main() -> None:
    """Run the case that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often to measure (default: the case's own)")
    parser.add_argument("--size-mib", type=int, metavar="N", help="cases read and gzip: size of the weights")
    parser.add_argument("--members", type=int, metavar="N", help="case many: files of the layer")
    arguments = parser.parse_args()
    report = importlib.import_module(f"bench.{arguments.case}").measure(arguments)
    report.publish(arguments.json)


if __name__ == "__main__":
    main()
