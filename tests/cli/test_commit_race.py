"""Several commits to one tag at once: one wins, the others are told, nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kitfs.modelkit.derive import DeriveOptions, derive
from kitfs.modelkit.resolve import resolve
from kitfs.modelkit.staging import create_staging
from kitfs.oci.reference import parse_reference
from kitfs.progress import NoProgress
from kitfs.store.errors import TagTaken
from kitfs.store.fsck import check
from kitfs.store.store import Store

PROJECT = Path(__file__).parent.parent.parent
CHILD = parse_reference("myllm:2")
COUNT = 3


@pytest.fixture
def stagings(kitfs, tmp_path):
    """Staging directories over one ModelKit, each with another change."""
    folder = tmp_path / "folder"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/a.bin").write_bytes(os.urandom(300_000))
    (folder / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel:\n  path: weights\n")
    assert kitfs("pack", folder, "-t", "myllm:1", "--progress", "none").code == 0
    made = []
    with Store.open(tmp_path / "home") as store:
        kit = resolve(store, parse_reference("myllm:1"))
        for number in range(COUNT):
            path = tmp_path / f"work-{number}"
            staging = create_staging(store, path, kit, overlay="overlay", uid=os.getuid(), gid=os.getgid())
            (staging.upper / "weights").mkdir(exist_ok=True)
            (staging.upper / "weights/b.bin").write_bytes(b"%d" % number * 200_000)
            made.append(path)
    yield made
    with Store.open(tmp_path / "home") as store:
        assert not check(store, read_data=True).problems


def begin(work, *options):
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from kitfs.cli.main import main; main()", "--progress", "none", "commit", work]
    return subprocess.Popen(
        [*command, "myllm:2", "--format", "json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


def tagged(tmp_path):
    with Store.open(tmp_path / "home") as store:
        return str(store.get_tag(CHILD.repository, CHILD.tag).manifest)


def test_one_of_several_commits_wins(stagings, tmp_path):
    """Of commits to one new tag that begin at once one wins, and the tag is its; the others exit with 7 and say why."""
    running = [begin(path) for path in stagings]
    outputs = [process.communicate(timeout=120) for process in running]
    assert sorted(process.returncode for process in running) == [0] + [7] * (COUNT - 1)
    for process, (out, err) in zip(running, outputs, strict=True):
        if process.returncode:
            assert "myllm:2 is there already" in err and "--force" in err
        else:
            assert json.loads(out)["digest"] == tagged(tmp_path)


def test_forced_commits_all_succeed(stagings, tmp_path):
    """With --force each moves the tag; it is one of theirs in the end, and whole."""
    running = [begin(path, "--force") for path in stagings]
    made = [json.loads(process.communicate(timeout=120)[0])["digest"] for process in running]
    assert [process.returncode for process in running] == [0] * COUNT
    assert len(set(made)) == COUNT and tagged(tmp_path) in made


class Interloper(NoProgress):
    """Commits another staging directory to the same tag when the first layer begins to be written."""

    def __init__(self, home, work):
        self.home, self.work, self.made = home, work, None

    def begin(self, name, size):
        with Store.open(self.home) as store:
            self.made = derive(store, self.work, CHILD).manifest
        return super().begin(name, size)


def test_tag_that_is_made_meanwhile_is_left_alone(stagings, tmp_path):
    """A tag that was free at the start and is taken while layers are written stays the other's."""
    home = tmp_path / "home"
    interloper = Interloper(home, stagings[1])
    with Store.open(home) as store:
        with pytest.raises(TagTaken):
            derive(store, stagings[0], CHILD, progress=interloper)
        assert store.get_tag(CHILD.repository, CHILD.tag).manifest == interloper.made
        again = derive(store, stagings[0], CHILD, options=DeriveOptions(moves_tag=True))
        assert store.get_tag(CHILD.repository, CHILD.tag).manifest == again.manifest != interloper.made
