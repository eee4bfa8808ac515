"""``python -m bench CASE [--json FILE]``: one measurement, several rounds, medians.

Cases: ``mount`` (from command to ``ls``), ``read`` (through a mount against the local disk), ``native`` (the same of a
materialised member), ``memory``, ``gzip`` (a gzip kit read without unpacking it, against unpacking it and against
ratarmount), ``sizes`` (index of a gzip layer by compressor), ``many`` (200 000 small files), ``pack`` (weights into a
store, against sha256sum and kit), ``unpack`` (weights into a directory, against kit), ``commit`` (a change, small or
large, against sha256sum and kit).
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from bench.kits import ENCODERS

CASES = ("mount", "read", "native", "memory", "gzip", "sizes", "many", "pack", "unpack", "commit")


def main() -> None:
    """Run the case that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often to measure (default: the case's own)")
    parser.add_argument(
        "--size-mib",
        type=int,
        metavar="N",
        help="size of the data: all cases but mount, memory, many",
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="igzip -2", help="case gzip: what packs the layer")
    parser.add_argument("--members", type=int, metavar="N", help="case many: files of the layer")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and processes end too
    report = importlib.import_module(f"bench.{arguments.case}").measure(arguments)
    report.publish(arguments.json)


if __name__ == "__main__":
    main()
