"""``kitfs export``: what it prints, where it goes, and what it refuses."""

import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kitfs.store.store import Store

MYLLM = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
TUNED = "sha256:5a79e117125d0defac6b730c72e2a74b0475cb4969e32b75174d846b6c4b3f45"
DOT = "sha256:b8c1cbad157accf7c7683b5082899f54a837956e4b5a43308b2385343c250173"
TUNED_NAME = "registry.example.com:8080/acme/team_a/tuned:1"
PLAIN = ("--progress", "none")


def real(home: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, for standard output as bytes."""
    command = [Path(sys.executable).with_name("kitfs"), "--home", home, "export", *arguments, *PLAIN]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)


def names_in(archive: Path, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_folder(filled, tmp_path, read_layout):
    """A new folder becomes a layout with all tags that were asked for, every blob with its digest."""
    done = filled("export", "myllm:3.1.4,latest", tmp_path / "a/b/out", *PLAIN)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"Exported myllm:3.1.4 ({MYLLM})\nExported myllm:latest ({MYLLM})\n"
    assert read_layout(tmp_path / "a/b/out") == {"3.1.4": MYLLM, "latest": MYLLM}


def test_parents_come_along(filled, tmp_path, read_layout):
    """A parent is exported under its full name, so that its tag can be any."""
    assert filled("export", TUNED_NAME, tmp_path / "out", *PLAIN).code == 0
    assert read_layout(tmp_path / "out") == {"1": TUNED, "localhost/myllm:3.1.4": MYLLM}


def test_a_parent_that_is_not_there_is_said(filled, tmp_path, read_layout):
    """Without its parent a ModelKit is exported all the same, with a warning."""
    filled("remove", "myllm:3.1.4")
    done = filled("export", TUNED_NAME, tmp_path / "out", *PLAIN)
    assert done.code == 0 and "myllm:3.1.4 is not in the store" in done.err
    assert read_layout(tmp_path / "out") == {"1": TUNED}


def test_by_digest(filled, tmp_path, read_layout):
    """What is asked for by its digest has no name in the layout."""
    assert filled("export", f"myllm@{MYLLM}", tmp_path / "out", *PLAIN).out == f"Exported myllm@{MYLLM} ({MYLLM})\n"
    assert read_layout(tmp_path / "out") == {MYLLM: MYLLM}


@pytest.mark.parametrize("place", ["out", "out.tar"])
def test_import_of_an_export_gives_the_same_names(filled, tmp_path, place):
    """Repositories, tags and ModelKitIDs come back, parents included, from folder and archive."""
    filled("export", TUNED_NAME, tmp_path / place, *PLAIN)
    done = filled("--home", tmp_path / "other", "import", tmp_path / place, *PLAIN)
    assert done.out == f"Imported {TUNED_NAME} ({TUNED})\nImported myllm:3.1.4 ({MYLLM})\n"


def test_import_under_another_name(filled, tmp_path):
    """--as goes before the name that the export has noted."""
    filled("export", "whole:dot", tmp_path / "out", *PLAIN)
    done = filled("--home", tmp_path / "other", "import", tmp_path / "out", "--as", "mine", *PLAIN)
    assert done.out == f"Imported mine:dot ({DOT})\n"


def test_split_blobs_are_put_together(filled, tmp_path, read_layout):
    """Layers that the store keeps as files and a recipe are exported as they were published."""
    with Store.open(tmp_path / "home") as store:
        split = {digest.hex for digest, record in store.iter_blobs() if record.form == "split"}
    assert filled("export", "myllm:3.1.4", tmp_path / "out", *PLAIN).code == 0
    read_layout(tmp_path / "out")
    assert split & {path.name for path in (tmp_path / "out/blobs/sha256").iterdir()}


def test_no_file_is_shared_with_the_store(filled, tmp_path):
    """An export has inodes of its own: nobody gets at the store's files through it."""
    filled("export", "myllm:3.1.4-gzip", tmp_path / "out", *PLAIN)
    mine = {path.stat().st_ino for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert not mine & {path.stat().st_ino for path in (tmp_path / "out").rglob("*")}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (tmp_path / "out/blobs/sha256").iterdir())


def test_a_reference_means_one_thing_in_a_layout(filled, tmp_path, read_layout):
    """A tag that has moved since it came along as a parent is refused with 7; --force takes the old name away."""
    out = tmp_path / "out"
    filled("export", TUNED_NAME, out, *PLAIN)
    filled("export", "myllm:3.1.4", out, *PLAIN)
    assert filled("--home", tmp_path / "a", "import", out, *PLAIN).out.count("myllm:3.1.4") == 1
    filled("tag", "whole:dot", "myllm:3.1.4")
    assert filled("export", "myllm:3.1.4", out, *PLAIN).code == 7
    assert filled("export", "myllm:3.1.4", out, "--force", *PLAIN).code == 0
    assert read_layout(out) == {"1": TUNED, "3.1.4": DOT, MYLLM: MYLLM}


@pytest.mark.parametrize("place", ["out", "out.tar"])
def test_the_umask_is_respected(filled, tmp_path, place):
    """Whoever keeps files private gets private ones."""
    before = os.umask(0o077)
    try:
        filled("export", "whole:dot", tmp_path / place, *PLAIN)
    finally:
        os.umask(before)
    found = [tmp_path / place, *(tmp_path / place).rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} <= {0o600, 0o700}


def test_adds_to_a_layout(filled, tmp_path, read_layout):
    """What a layout holds stays as it is, with keys that we do not know; blobs that are right are not written again."""
    out = tmp_path / "out"
    filled("export", "whole:dot", out, *PLAIN)
    index = json.loads((out / "index.json").read_text())
    index["manifests"][0]["platform"] = {"os": "any", "architecture": "any"}
    index["annotations"] = {"a": "<b>"}
    (out / "index.json").write_text(json.dumps(index))
    before = {path: path.stat().st_ino for path in (out / "blobs/sha256").iterdir()}
    assert filled("export", "empty:0", out, *PLAIN).code == 0
    assert filled("export", "whole:dot", out, *PLAIN).code == 0
    after = json.loads((out / "index.json").read_text())
    assert after["manifests"][0] == index["manifests"][0] and after["annotations"] == index["annotations"]
    assert {path: path.stat().st_ino for path in before} == before
    assert sorted(read_layout(out)) == ["0", "dot"]


def test_wrong_blobs_of_a_layout_are_replaced(filled, tmp_path, read_layout):
    """A blob with other bytes, or a link in its place, is put right."""
    out = tmp_path / "out"
    filled("export", "whole:dot", out, *PLAIN)
    first, second, *_ = sorted((out / "blobs/sha256").iterdir())
    first.write_bytes(b"x" * first.stat().st_size)
    second.rename(tmp_path / "elsewhere")
    second.symlink_to(tmp_path / "elsewhere")
    assert filled("export", "whole:dot", out, *PLAIN).code == 0
    assert read_layout(out) == {"dot": DOT} and not second.is_symlink()


def test_a_name_that_is_taken(filled, tmp_path, read_layout):
    """Another ModelKit's name is refused with 7 and nothing changes; --full-name goes beside it, --force takes it."""
    out = tmp_path / "out"
    filled("tag", "empty:0", "whole:1")
    filled("export", TUNED_NAME, out, *PLAIN)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = filled("export", "whole:1", out, *PLAIN)
    assert refused.code == 7 and TUNED in refused.err and "--force" in refused.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert filled("export", "whole:1", out, "--full-name", *PLAIN).code == 0
    assert set(read_layout(out)) == {"1", "localhost/myllm:3.1.4", "localhost/whole:1"}
    assert filled("export", "whole:1", out, "--force", *PLAIN).code == 0
    found = read_layout(out)
    assert found["1"] == found["localhost/whole:1"] and found[TUNED] == TUNED


def test_archive(filled, tmp_path, read_layout):
    """An archive is sorted, without times, the same each time, and a layout when it is taken out."""
    for name in ("a.tar", "b.tar"):
        assert filled("export", TUNED_NAME, tmp_path / name, *PLAIN).code == 0
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    names = names_in(tmp_path / "a.tar", tmp_path / "out")
    assert names == sorted(names) and names[-2:] == ["index.json", "oci-layout"]
    assert read_layout(tmp_path / "out") == {"1": TUNED, "localhost/myllm:3.1.4": MYLLM}
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {member.mtime for member in tar} == {0}


def test_an_archive_is_replaced_only_by_force(filled, tmp_path):
    """A file in the way is refused with 7 and stays; --force replaces it."""
    out = tmp_path / "a.tar"
    out.write_text("mine")
    assert filled("export", "empty:0", out, *PLAIN).code == 7
    assert out.read_text() == "mine"
    assert filled("export", "empty:0", out, "-f", *PLAIN).code == 0
    assert tarfile.is_tarfile(out)


def test_standard_output(filled, tmp_path):
    """- writes the same archive to a pipe, and what is said goes to standard error."""
    filled("export", "whole:dot", tmp_path / "a.tar", *PLAIN)
    done = real(tmp_path / "home", "whole:dot", "-")
    assert done.returncode == 0 and done.stdout == (tmp_path / "a.tar").read_bytes()
    assert done.stderr.decode() == f"Exported whole:dot ({DOT})\n"


def test_standard_output_that_takes_no_more(filled, tmp_path):
    """A full disk behind standard output is a message and 1."""
    with open("/dev/full", "wb") as full:
        command = [Path(sys.executable).with_name("kitfs"), "--home", tmp_path / "home", "export", "whole:dot", "-"]
        done = subprocess.run([*command, *PLAIN], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 1 and b"No space left" in done.stderr and b"Traceback" not in done.stderr


def test_formats(filled, tmp_path):
    """--format json gives repo, tag and digest of each; -q each ModelKitID once."""
    done = filled("export", TUNED_NAME, tmp_path / "out", "--format", "json", *PLAIN)
    repository, tag = TUNED_NAME.rsplit(":", 1)
    assert done.json == [
        {"repo": repository, "tag": tag, "digest": TUNED},
        {"repo": "myllm", "tag": "3.1.4", "digest": MYLLM},
    ]
    assert filled("export", "myllm:3.1.4,latest", tmp_path / "out", "-q", *PLAIN).out == f"{MYLLM}\n"


def test_refusals(filled, tmp_path, shared_fixtures):
    """Not found is 3, a place that can not be used 2, and nothing is written there."""
    assert filled("export", "absent:1", tmp_path / "out", *PLAIN).code == 3
    assert filled("export", f"x@sha256:{'0' * 64}", tmp_path / "out", *PLAIN).code == 3
    assert filled("export", "whole:dot").code == 2
    assert filled("export", "--kit", "--full-name", "whole:dot").code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    filled("export", "--kit", "whole:dot", tmp_path / "kit", *PLAIN)
    for place in ("full", "file", "kit/storage", "home/x", "home/x.tar", "absent/x.tar"):
        done = filled("export", "whole:dot", tmp_path / place, *PLAIN)
        assert done.code == 2 and "can not export to" in done.err, place
    assert os.listdir(tmp_path / "full") == ["notes.txt"] and not (tmp_path / "out").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/oci-layout").write_text('{"imageLayoutVersion": "9"}')
    assert filled("export", "whole:dot", tmp_path / "bad", *PLAIN).code == 1


def test_a_corrupt_blob_is_not_exported(kitfs, make_layout, tmp_path):
    """Wrong bytes in the store are 6: no index is written, no archive appears, and a stream breaks off."""
    kitfs("import", make_layout("m", "gzip", {"w": b"weights" * 1000}), "--copy", *PLAIN)
    with Store.open(tmp_path / "home") as store:
        layer = store.layout.blob(
            next(digest for digest, record in store.iter_blobs() if "+gzip" in record.media_types[0])
        )
    layer.chmod(0o600)
    layer.write_bytes(b"x" + layer.read_bytes()[1:])
    for place in ("out", "out.tar"):
        done = kitfs("export", "m:1", tmp_path / place, *PLAIN)
        assert done.code == 6 and layer.name in done.err
    assert not (tmp_path / "out.tar").exists() and not (tmp_path / "out/index.json").exists()
    assert layer.name not in os.listdir(tmp_path / "out/blobs/sha256")
    stream = real(tmp_path / "home", "m:1", "-")
    assert stream.returncode == 6 and b"index.json" not in stream.stdout


def test_several_at_once(filled, tmp_path, read_layout):
    """Six processes that export to one folder all find their names in it."""
    names = ["myllm:3.1.4", "myllm:3.1.4-gzip", "myllm:3.1.4-fast", "whole:dot", "one-file:1", "empty:0"]
    command = [Path(sys.executable).with_name("kitfs"), "--home", tmp_path / "home", "export", "-q"]
    started = [
        subprocess.Popen([*command, name, tmp_path / "out", *PLAIN], stdout=subprocess.DEVNULL) for name in names
    ]
    assert [process.wait(timeout=60) for process in started] == [0] * 6
    assert set(read_layout(tmp_path / "out")) == {name.split(":")[1] for name in names}
    assert sorted(os.listdir(tmp_path / "out")) == ["blobs", "index.json", "oci-layout"]
