"""Run as ``python -c SOURCE DIRECTORY``: a folder to pack, with a model, a dataset and docs."""

import pathlib
import sys

top = pathlib.Path(sys.argv[1])
for name in ("model", "data/sub", "docs"):
    (top / name).mkdir(parents=True)
(top / "Kitfile").write_text(
    "manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: model}\n"
    "datasets: [{name: d, path: data}]\ndocs: [{path: docs}]\n"
)
(top / "model/weights.bin").write_bytes(bytes(range(256)) * 4096)
(top / "model/private.bin").write_bytes(b"private")
(top / "model/private.bin").chmod(0o600)
(top / "data/a.txt").write_text("a\n")
(top / "data/sub/b.txt").write_text("b\n")
(top / "data/run.sh").write_text("#!/bin/sh\necho runs\n")
(top / "data/run.sh").chmod(0o755)
(top / "docs/README.md").write_text("read me\n")
