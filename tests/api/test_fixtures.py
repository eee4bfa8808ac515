"""Every ModelKit that another program packed is read from Python as that program unpacks it."""

import hashlib
import random

import kitfs
from kitfs.api.path import KitPath


def read_tree(directory: KitPath) -> dict[str, dict[str, object]]:
    """What the API shows below a directory, in the form of the fixtures' ``expected``."""
    found: dict[str, dict[str, object]] = {}
    for path in directory.iterdir():
        entry: dict[str, object] = {"mode": oct(path.mode)}
        if path.is_dir():
            found |= read_tree(path)
            found[str(path)] = entry | {"type": "dir"}
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = entry | {"type": "file", "size": path.size, "sha256": digest}
    return found


def test_tree_is_what_its_own_program_unpacks(import_kits, recorded):
    """Paths, types, modes, sizes and digests of every ModelKit of every program equal what its own unpack left."""
    home = import_kits(*recorded.arguments)
    for reference, expected in recorded.trees.items():
        with kitfs.open(reference, home=home) as kit:
            assert read_tree(kit.files()) == expected, reference


def test_any_range_is_that_of_the_whole(import_kits, recorded):
    """Ranges at random, and the ends of every file, are those of the bytes as a whole, buffered and not."""
    home = import_kits(*recorded.arguments)
    rng = random.Random(7)
    for reference in recorded.trees:
        with kitfs.open(reference, home=home) as kit:
            for path in kit.files().iter_files():
                data = path.read_bytes()
                with path.open("rb") as file:
                    for _ in range(20):
                        start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
                        assert path.read_range(start, stop) == data[start:stop]
                        file.seek(start)
                        assert file.read(stop - start) == data[start:stop]
                    assert path.read_range(0, len(data)) == data and path.read_range(len(data), len(data)) == b""
