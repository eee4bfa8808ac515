"""``kitfs export --kit``: into kit's local storage, beside what kit has there."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kitfs.transfer.kit_storage import KitStorage

MYLLM = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
TUNED_NAME = "registry.example.com:8080/acme/team_a/tuned:1"
PLAIN = ("--progress", "none")


@pytest.fixture
def kits_home(shared_fixtures: Path, tmp_path: Path) -> Path:
    """A home in which kit 0.4.0 has stored a ModelKit, ``myllm:3.1.4``."""
    shutil.copytree(shared_fixtures / "kit-v0.4.0/storage", tmp_path / "kitops/storage")
    return tmp_path / "kitops"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def named_in(home: Path) -> dict[str, str]:
    source = KitStorage(home / "storage")
    try:
        return {entry.display: str(entry.descriptor.digest) for entry in source.iter_entries()}
    finally:
        source.close()


def test_names_are_written_as_kit_writes_them(filled, tmp_path, shared_fixtures):
    """All ModelKits of a storage of kit 1.7.0 give the same names there, its tags files byte for byte."""
    for kit in filled("list", "--format", "json").json:
        assert filled("export", "--kit", f"{kit['repo']}:{','.join(kit['tags'])}", tmp_path / "kit", *PLAIN).code == 0
    assert named_in(tmp_path / "kit") == named_in(shared_fixtures / "kit-v1.7.0")
    mine, theirs = files_of(tmp_path / "kit/storage"), files_of(shared_fixtures / "kit-v1.7.0/storage")
    assert set(mine) == set(theirs)
    differ = {name for name in mine if mine[name] != theirs[name]}
    assert all(name.endswith("index.json") for name in differ)  # the order of their entries is that of the exports


def test_what_kit_has_stays(filled, kits_home):
    """Other entries and blobs stay as they are; blobs are 0600, as kit's; the default place is $KITOPS_HOME."""
    before = files_of(kits_home)
    done = filled("export", "--kit", TUNED_NAME, *PLAIN)
    assert done.code == 7 and "myllm:3.1.4" in done.err  # the parent has another ModelKit's name there
    assert files_of(kits_home) == before
    filled("tag", "myllm:3.1.4", "other:1")
    assert filled("export", "--kit", "other:1", *PLAIN).code == 0
    after = files_of(kits_home)
    assert {name: after[name] for name in before if name != "storage/index.json"} == {
        name: data for name, data in before.items() if name != "storage/index.json"
    }
    assert set(named_in(kits_home)) == {"myllm:3.1.4", "other:1"}
    new = [kits_home / name for name in set(after) - set(before) if "blobs" in name]
    assert new and {stat.S_IMODE(path.stat().st_mode) for path in new} == {0o600}


def test_force_moves_a_tag(filled, kits_home):
    """With --force kit's tag moves; what it named stays in the repository, without a tag."""
    (old,) = named_in(kits_home).values()
    done = filled("export", "--kit", "myllm:3.1.4", kits_home, "--force", *PLAIN)
    assert done.code == 0
    assert named_in(kits_home) == {"myllm:3.1.4": MYLLM, f"myllm@{old}": old}


def test_twice_is_once(filled, tmp_path):
    """What is there already is not written again, and no entry is doubled."""
    filled("export", "--kit", "myllm:3.1.4,latest", tmp_path / "kit", *PLAIN)
    before = {path: path.stat().st_ino for path in (tmp_path / "kit/storage/blobs/sha256").iterdir()}
    content = files_of(tmp_path / "kit")
    assert filled("export", "--kit", "myllm:3.1.4,latest", tmp_path / "kit", *PLAIN).code == 0
    assert {path: path.stat().st_ino for path in before} == before
    assert files_of(tmp_path / "kit") == content


def test_refusals(filled, tmp_path):
    """A layout, a file and half a file of kit's are no places to export to, and stay as they are."""
    filled("export", "whole:dot", tmp_path / "layout", *PLAIN)
    assert filled("export", "--kit", "whole:dot", tmp_path / "layout", *PLAIN).code == 2
    (tmp_path / "file").write_text("mine")
    assert filled("export", "--kit", "whole:dot", tmp_path / "file", *PLAIN).code == 2
    assert filled("export", "--kit", "whole:dot", tmp_path / "home/x", *PLAIN).code == 2
    filled("export", "--kit", "whole:dot", tmp_path / "kit", *PLAIN)
    tags = next((tmp_path / "kit/storage").glob("*-tags.json"))
    tags.write_bytes(tags.read_bytes()[:-7])
    before = files_of(tmp_path / "kit")
    done = filled("export", "--kit", "whole:dot", tmp_path / "kit", *PLAIN)
    assert done.code == 1 and tags.name in done.err and files_of(tmp_path / "kit") == before


def test_a_storage_of_kit_0_1_is_left_alone(filled, shared_fixtures, tmp_path):
    """The older shape, from which newer kits would move its tags over ours, is refused and stays as it is."""
    shutil.copytree(shared_fixtures / "kit-v0.1.0/storage", tmp_path / "kit/storage")
    before = files_of(tmp_path / "kit")
    done = filled("export", "--kit", "whole:dot", tmp_path / "kit", *PLAIN)
    assert done.code == 2 and "kit list" in done.err and files_of(tmp_path / "kit") == before


def test_what_breaks_kit(kitfs, shared_fixtures, tmp_path):
    """A ModelPack, at which `kit list` of today panics, is refused unless it is forced; raw layers are warned of."""
    kitfs("import", shared_fixtures / "modctl/layout", "--as", "mp", "--copy", *PLAIN)
    done = kitfs("export", "--kit", "mp:tar", tmp_path / "kit", *PLAIN)
    assert done.code == 2 and "ModelPack" in done.err and not (tmp_path / "kit").exists()
    done = kitfs("export", "--kit", "mp:raw", tmp_path / "kit", "--force", *PLAIN)
    assert done.code == 0 and "raw layers" in done.err and list(named_in(tmp_path / "kit")) == ["mp:raw"]


def test_prompts_are_warned_of(kitfs, tmp_path):
    """kit up to 1.7 takes a layer of prompts for code that no entry names, and panics when it unpacks it."""
    (tmp_path / "context/hello").mkdir(parents=True)
    (tmp_path / "context/Kitfile").write_text('manifestVersion: "1.0.0"\nprompts: [{path: hello}]\n')
    kitfs("pack", tmp_path / "context", "-t", "said:1", *PLAIN)
    done = kitfs("export", "--kit", "said:1", tmp_path / "kit", *PLAIN)
    assert done.code == 0 and "said:1 has prompt layers" in done.err


def test_an_imported_export_is_the_same(filled, tmp_path):
    """What was exported to kit comes back with the same names and ModelKitIDs."""
    filled("export", "--kit", TUNED_NAME, tmp_path / "kit", *PLAIN)
    done = filled("--home", tmp_path / "other", "import", tmp_path / "kit", "--copy", "-q", *PLAIN)
    assert set(done.out.split()) == set(named_in(tmp_path / "kit").values())


def test_a_real_kit_reads_it(filled, tmp_path, shared_fixtures):
    """kit lists, inspects and unpacks what was exported, parents included, to the trees that it wrote itself."""
    kit = os.environ.get("KITFS_TEST_KIT")
    if not kit:
        pytest.skip("KITFS_TEST_KIT names no kit to try")

    def call(*arguments: str | Path) -> str:
        environment = os.environ | {"KITOPS_HOME": str(tmp_path / "kit")}
        done = subprocess.run(
            [kit, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    filled("export", "--kit", TUNED_NAME, tmp_path / "kit", *PLAIN)
    listed = [tuple(line.split()[:2]) for line in call("list").splitlines()[1:]]
    assert listed == [("myllm", "3.1.4"), tuple(TUNED_NAME.rsplit(":", 1))]
    assert MYLLM[7:] in call("inspect", "myllm:3.1.4")
    for name in ("myllm:3.1.4", TUNED_NAME):
        file = name.replace("/", "_").replace(":", "_")
        call("unpack", name, "-d", tmp_path / file)
        expected = json.loads((shared_fixtures / f"kit-v1.7.0/expected/{file}.json").read_text())
        assert {item["path"]: (int(item["mode"], 8), item.get("sha256")) for item in expected} == {
            str(path.relative_to(tmp_path / file)): (stat.S_IMODE(path.stat().st_mode), sha256(path))
            for path in (tmp_path / file).rglob("*")
        }


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
