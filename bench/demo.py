"""``./dev demo``: a ModelKit is made, packed, mounted and read, changed and committed; nothing is left behind.

Every line after ``$`` is a command that a person could type; what follows it is what it printed.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

from bench.kits import make_example
from bench.world import KITFS, World, make_world

REFERENCE = "tiny-sentiment:0.1.0"
CHILD = "tiny-sentiment:0.1.1"

READ_TENSOR = """\
import safetensors
with safetensors.safe_open("mnt/model", "numpy") as weights:
    bias = weights.get_tensor("classifier.bias")
    print("classifier.bias", bias.dtype, bias.shape, bias.tolist(), bias.tobytes().hex())"""

NEXT = """\
What to try next:
  ./dev shell                            a shell in which `kitfs` is this checkout's
  kitfs import LAYOUT                    bring in an OCI layout (folder or tar), or kit's local storage
  kitfs mount myllm:3.1.4 /mnt/model     a kit that `kit` has pulled is found by itself (KITOPS_HOME)
  kitfs mount --all /mnt/all             the whole store as /repository/tag/…
  kitfs commit ./work myllm:3.1.5        any folder with a Kitfile, too
  ./dev bench read                       how fast a mount is read, here
  ./dev test                             lint, types and all tests"""


def show(world: World, *command: str) -> None:
    """Print a command, run it in the world's folder, and let it print.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    print(f"$ {shlex.join(command)}" if "\n" not in command[-1] else f"$ python -c '\n{command[-1]}'", flush=True)
    real = {"kitfs": KITFS, "python": [sys.executable]}.get(command[0], [command[0]])
    subprocess.run([*real, *command[1:]], cwd=world.folder, env=world.environment, check=True)
    print(flush=True)


def demonstrate(world: World) -> None:
    """The whole story, in the order in which a person would live it.

    Raises:
        subprocess.CalledProcessError: when a command fails.
    """
    make_example(world.folder / "tiny-sentiment")
    (world.folder / "mnt").mkdir()
    print("An example ModelKit has been made: weights, a tokenizer, a dataset, code, and a Kitfile.\n")
    show(world, "kitfs", "pack", "tiny-sentiment", "-t", REFERENCE)
    show(world, "kitfs", "list")
    show(world, "kitfs", "mount", REFERENCE, "mnt")
    show(world, "ls", "-lR", "mnt")
    show(world, "cat", "mnt/.kitfs/id")
    show(world, "python", "-c", READ_TENSOR)
    show(world, "sha256sum", "tiny-sentiment/weights/model.safetensors", "mnt/model")
    show(world, "kitfs", "ps")
    show(world, "kitfs", "umount", "mnt")
    change(world)
    show(world, "kitfs", "daemon", "stop")


def change(world: World) -> None:
    """A change in a writable mount becomes a ModelKit of its own.

    Raises:
        subprocess.CalledProcessError: when a command fails.
    """
    show(world, "kitfs", "mount", REFERENCE, "mnt", "--writable")
    show(world, "sh", "-c", "echo Tried on 40 000 reviews. >> mnt/README.md")
    show(world, "kitfs", "diff", "mnt")
    show(world, "kitfs", "commit", "mnt", CHILD, "-m", "say what it was tried on")
    show(world, "kitfs", "log", CHILD)
    show(world, "kitfs", "umount", "mnt")
    show(world, "kitfs", "du")


def main() -> int:
    """Run the demonstration; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with make_world() as world:
            demonstrate(world)
            left = Path(world.folder)
    except subprocess.CalledProcessError as error:
        print(f"demo: {shlex.join(map(str, error.cmd))} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    assert not left.exists(), f"{left} was left behind"
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
