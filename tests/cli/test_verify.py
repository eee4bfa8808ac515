"""The verb verify and the rebuild of the index: what they print and how they end."""

import os
import subprocess
import sys

import pytest

from kitfs.store.store import Store


@pytest.fixture
def code_layer(filled, tmp_path):
    """The digest and file of one layer of myllm:3.1.4."""
    part = next(
        part for part in filled("verify", "myllm:3.1.4", "--format", "json").json["parts"] if part["part"] == "code"
    )
    hexadecimal = part["digest"].removeprefix("sha256:")
    return part["digest"], tmp_path / "home/blobs/sha256" / hexadecimal[:2] / hexadecimal


def rewrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


def test_verify_prints_a_line_for_each_part(filled):
    """A sound ModelKit ends with 0: a header and a line for manifest, config and each layer; -q prints nothing."""
    done = filled("verify", "myllm:3.1.4", "--progress", "none")
    assert done.code == 0
    header, *rows = done.out.splitlines()
    assert header.split() == ["STATE", "KIT", "PART", "DIGEST", "SIZE", "DETAIL"]
    assert [row.split()[2] for row in rows[:3]] == ["manifest", "config", "model"]
    assert len(rows) == 9
    assert {row.split()[0] for row in rows} == {"right"}
    assert filled("verify", "-q", "myllm:3.1.4").out == ""


def test_verify_of_a_damaged_layer(filled, code_layer):
    """A damaged layer ends with 6, is named in every form, and its line says what mends it."""
    digest, path = code_layer
    original = path.read_bytes()
    rewrite(path, original[:-1] + b"x")
    done = filled("verify", "myllm:3.1.4")
    assert done.code == 6
    [row] = [row for row in done.out.splitlines() if row.startswith("damaged")]
    assert digest in row
    assert "import the ModelKit again" in row
    assert filled("verify", "-q", "myllm:3.1.4").out == f"{digest}\n"
    assert filled("verify", "--format", "json", "myllm:3.1.4").json["right"] is False
    rewrite(path, original)
    assert filled("verify", "myllm:3.1.4").code == 0


def test_verify_of_what_is_not_there(filled):
    """An unknown reference ends with 3, a malformed one with the code of its kind."""
    assert filled("verify", "nothing:1").code == 3
    assert filled("verify", "a//b").code not in (0, 6)


def test_rebuild_of_a_lost_index(filled, tmp_path):
    """With its index gone a store is whole again after a rebuild: exit code 1, then 0, and the list is the same."""
    before = filled("list").out
    (tmp_path / "home/index/data.mdb").write_bytes(b"garbage" * 4096)
    assert filled("list").code == 6
    assert "kitfs fsck --rebuild-index" in filled("list").err
    done = filled("fsck", "--rebuild-index", "--progress", "none")
    assert done.code == 1
    assert done.out.splitlines()[1].split()[:3] == ["repaired", "damaged-index", "index"]
    assert "kept as quarantine/index." in done.out
    assert filled("list").out == before
    assert filled("fsck", "--read-data").code == 0
    assert filled("fsck", "--rebuild-index").code == 0
    assert filled("fsck", "--rebuild-index", "--repair").code == 0


def test_rebuild_names_what_is_lost(filled, code_layer, tmp_path):
    """A corrupt blob ends with 6 and is named; -q prints its digest; importing again heals."""
    digest, path = code_layer
    original = path.read_bytes()
    rewrite(path, b"x" + original[1:])
    done = filled("fsck", "--rebuild-index", "-q")
    assert done.code == 6
    assert digest in done.out.split()
    assert not path.exists()
    assert filled("verify", "myllm:3.1.4", "-q").out == f"{digest}\n"
    path.write_bytes(original)
    path.chmod(0o444)
    assert filled("fsck", "--rebuild-index").code == 0
    assert filled("verify", "myllm:3.1.4", "-q").code == 0


def test_rebuild_while_the_store_is_in_use(filled, tmp_path):
    """Another process that has the store open is reason to refuse: exit code 7 and what helps."""
    code = (
        "import sys; from pathlib import Path; from kitfs.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "home")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        done = filled("fsck", "--rebuild-index")
        other.communicate(b"")
    assert done.code == 7
    assert "umount" in done.err
    assert filled("fsck", "--rebuild-index").code == 0


def test_rebuild_of_no_store(kitfs, tmp_path):
    """Where there is no store none is made: exit code 3."""
    assert kitfs("fsck", "--rebuild-index").code == 3
    assert not (tmp_path / "home").exists()


def test_rebuild_with_the_installed_command(filled, tmp_path):
    """The installed command rebuilds, and says so on its own exit code."""
    (tmp_path / "home/index/data.mdb").unlink()
    command = [sys.executable, "-c", "from kitfs.cli.start import main; main()", "fsck", "--rebuild-index"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "damaged-index" in done.stdout
    with Store.open(tmp_path / "home") as store:
        assert len(list(store.iter_tags())) == 8
