"""A mount and `unpack` with the same filters show the same tree."""

import os

import pytest

TUNED = "registry.example.com:8080/acme/team_a/tuned:1"


def read_tree(directory):
    """Path to mode and bytes of all below a directory."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            data = None
            if name in files and not os.path.islink(path):
                with open(path, "rb") as file:
                    data = file.read()
            found[os.path.relpath(path, directory)] = (oct(status.st_mode), data)
    return found


@pytest.mark.mount
@pytest.mark.parametrize(
    ("reference", "filters"),
    [
        ("myllm:3.1.4", ["model"]),
        ("myllm:3.1.4", ["kitfile,docs", "datasets"]),
        ("myllm:3.1.4-gzip", ["code"]),
        (TUNED, ["model", "kitfile"]),
        (TUNED, ["docs"]),
        ("myllm:3.1.4", ["datasets:absent"]),
    ],
)
def test_filtered_mount_shows_what_is_unpacked(kitfs, shared_fixtures, tmp_path, reference, filters):
    """Paths, modes and bytes are equal, but for the link `model` that a mount has beside."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    options = [word for text in filters for word in ("--filter", text)]
    served = read_tree(kitfs.mount(reference, *options, "-o", "modes=tar,nometa"))
    kitfs.run("unpack", reference, "-d", tmp_path / "unpacked", *options)
    unpacked = read_tree(tmp_path / "unpacked")
    if served.get("model", ("", None))[0].startswith("0o12") and "model" not in unpacked:
        del served["model"]
    assert served == unpacked
    assert bool(unpacked) == ("absent" not in str(filters))


@pytest.mark.mount
def test_filter_that_breaks_the_grammar_mounts_nothing(kitfs, shared_fixtures):
    """A mistake is exit code 2 with all that is wrong, with a daemon and without."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    (kitfs.folder / "mnt").mkdir()
    for _ in range(2):
        done = kitfs.run("mount", "myllm:3.1.4", kitfs.folder / "mnt", "--filter", "models", "--filter", "a", status=2)
        assert "invalid filter type models" in done.stderr and "invalid filter type a" in done.stderr
    assert kitfs.mounts() == []
    kitfs.run("mount", "--all", kitfs.folder / "mnt", "--filter", "model", status=2)
