"""``kitfs du``: the table, the JSON, and what is asked for."""

import re
import subprocess


def test_table(filled, tmp_path):
    """A line for each ModelKit, the one with most for itself first, then the store, which is what du(1) says."""
    done = filled("du")
    assert done.code == 0
    kits, _, store = done.out.partition("\n\n")
    header, *lines = kits.splitlines()
    assert re.split("  +", header) == ["SIZE", "UNIQUE", "SHARED", "LOGICAL", "MODELKIT"]
    assert [re.split("   +", line)[4] for line in lines] == [
        "myllm:3.1.4-fast",
        "myllm:3.1.4-gzip",
        "registry.example.com:8080/acme/team_a/tuned:1",
        "one-file:1",
        "whole:dot",
        "empty:0",
        "myllm:3.1.4,latest",
    ]
    rows = [re.split("   +", line) for line in store.splitlines()]
    assert rows[0] == ["SIZE", "IN THE STORE"]
    assert [row[1] for row in rows[2:]] == ["content of no ModelKit", "index", "folders and the rest", "total"]
    assert re.fullmatch(r"ModelKits, each byte once: [\d.]+ MiB unique, [\d.]+ MiB shared", rows[1][1])
    assert done.err == "kitfs gc would free 0 B\n"
    assert max(map(len, lines[1:2] + store.splitlines())) <= 80


def test_json_adds_up(filled, tmp_path):
    """Unique and shared bytes, content of no ModelKit and the other parts are what du(1) says of the store."""
    usage = filled("du", "--format", "json").json
    parts = usage["parts"]
    disk = subprocess.run(["du", "-sB1", tmp_path / "home"], check=True, capture_output=True, text=True).stdout
    assert parts["total"]["allocated"] == int(disk.split()[0])
    other = sum(parts[part]["allocated"] for part in ("index", "ingest", "quarantine", "rest"))
    assert usage["unique"] + usage["shared"] + usage["loose"] + other == parts["total"]["allocated"]
    assert sum(kit["unique"] for kit in usage["modelKits"]) == usage["unique"]
    assert usage["modelKits"][-1]["references"] == ["localhost/myllm:3.1.4", "localhost/myllm:latest"]
    assert all(kit["size"] == kit["unique"] + kit["shared"] for kit in usage["modelKits"])


def test_some_modelkits(filled):
    """With references only those ModelKits are shown, and what they are together; one named twice counts once."""
    done = filled("du", "myllm", "myllm:3.1.4", "empty:0")
    lines = done.out.splitlines()
    assert [line.split()[-1] for line in lines[1:-1]] == ["empty:0", "myllm:3.1.4,latest"]
    assert lines[-1].endswith("together, each byte once")
    assert done.err == ""
    assert filled("du", "empty:0", "-q").out.startswith("sha256:2ae55d09")


def test_what_gc_would_free(filled):
    """An untagged ModelKit is shown by its ID, and what it has alone is what gc would free."""
    digest = filled("du", "one-file:1", "-q").out.strip()
    assert filled("remove", "one-file:1").code == 0
    done = filled("du")
    assert f"{digest[:19]} (no tag)" in done.out
    assert re.fullmatch(r"kitfs gc would free 2\d\.\d KiB\n", done.err)
    assert filled("du", digest, "--format", "json").json["modelKits"][0]["references"] == []
    assert filled("gc").code == 0
    assert digest[:19] not in filled("du").out


def test_du_fails(kitfs, tmp_path, make_layout):
    """No store is 3 and makes none, as is a reference that is not there; one that is none is 1."""
    assert kitfs("du").code == 3
    assert not (tmp_path / "home").exists()
    assert kitfs("import", make_layout("a", "gzip", {"x": b"x"})).code == 0
    for reference, code in (("nope:1", 3), ("X//y", 1)):
        done = kitfs("du", "a:1", reference)
        assert (done.code, done.out) == (code, "")
