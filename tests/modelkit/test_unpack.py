"""`unpack` writes what is wanted and nothing outside of its directory, whoever works against it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kitfs.errors import KitfsError
from kitfs.layer.crew import Cancelled, Crew, run_apart
from kitfs.layer.errors import LayerCorrupt
from kitfs.modelkit import unpack_target
from kitfs.modelkit.filters import parse_filters
from kitfs.modelkit.unpack import KitfileDiffers, UnpackOptions, unpack
from kitfs.modelkit.unpack_errors import PathExists, PathIsLink, TargetFull, UnpackFailed
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
ROUNDS = 10_000 if CAMPAIGN else 150

TUNED = "registry.example.com:8080/acme/team_a/tuned:1"

ATTACKER = """
import ctypes, mmap, os, sys
target, outside, counter = map(os.fsencode, sys.argv[1:])
libc = ctypes.CDLL(None)
with open(counter, "r+b") as file:
    count = mmap.mmap(file.fileno(), 8)
number = 0
while True:
    for name in (b"d0", b"d1", b"d1/e", b"d0/f1", b"d2", b"d3", b"d1/e/f0", b"d4/e", b"d5"):
        path, link = target + b"/" + name, target + b"/link"
        goal = outside + (b"/victim" if b"/f" in name else b"")
        try:
            os.symlink(goal, link)
        except OSError:
            pass
        if libc.renameat2(-100, path, -100, link, 2) == 0:  # AT_FDCWD, RENAME_EXCHANGE: what has a name is a link now
            for _ in range(600):
                os.getppid()
            libc.renameat2(-100, path, -100, link, 2)
            number += 1
        else:
            try:
                os.symlink(goal, path)  # before it is made
                os.unlink(path)
                number += 1
            except OSError:
                pass
        try:
            os.unlink(link)
        except OSError:
            pass
    count[:] = number.to_bytes(8, "little")
"""


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "home") as store:
        yield store


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def kits(many_forms):
    """The store with kits of many forms."""
    with Store.open(many_forms) as store:
        yield store


def run(store: Store, reference: str, target: Path, *filters: str, **options: bool):
    return unpack(store, parse_reference(reference), target, UnpackOptions(parse_filters(filters), **options))


def names(target: Path) -> list[str]:
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())


def test_parents_model_comes_first_and_nothing_else_of_it(kits, target):
    """A kit whose model is a reference gives the parent's model and its own everything, told in kit's words."""
    told: list[str] = []
    unpack(kits, parse_reference(TUNED), target, say=told.append)
    assert told[0] == "Unpacking referenced modelkit myllm:3.1.4"
    assert told[1].startswith("Unpacking model ") and told[1].endswith(" to ./model")
    kitfile = next(number for number, text in enumerate(told) if text.startswith("Unpacking config to"))
    assert not any("referenced" in text for text in told[kitfile:])
    assert "src/" not in "\n".join(names(target))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["kitfile"], {"Kitfile"}),
        (["docs"], {"README.md", "LICENSE"}),
        (["model", "kitfile"], {"Kitfile", "model/", "adapters/"}),
        (["datasets:none-of-these"], set()),
    ],
)
def test_filters_choose(kits, target, filters, expected):
    """Only what a filter wants is written."""
    run(kits, "myllm:3.1.4", target, *filters)
    found = {name if "/" not in name else f"{name.split('/')[0]}/" for name in names(target)}
    assert found <= expected | {"docs/"}
    assert bool(found) == bool(expected)


@pytest.mark.parametrize("wanted", ["model", "datasets", "docs:copy.bin"])
def test_blob_of_several_entries_is_written_where_it_is_wanted(store, tmp_path, bring, make_raw_layout, target, wanted):
    """One file that is model, dataset and docs at three paths is written at the path of what a filter wants."""
    places = {"model": "w.bin", "datasets": "data/w.bin", "docs:copy.bin": "copy.bin"}
    bring(store, make_raw_layout(tmp_path / "layout", b"the same" * 999, list(places.values())))
    run(store, "raw:1", target, wanted)
    assert names(target) == [places[wanted]]


@pytest.fixture
def make_raw_layout():
    """A layout of one file as model, dataset and docs, each a raw layer with a path of its own."""
    base = "application/vnd.kitops.modelkit"

    def make(folder: Path, data: bytes, paths: list[str]) -> Path:
        blobs = folder / "blobs/sha256"
        blobs.mkdir(parents=True)

        def put(data: bytes, media_type: str, **more: object) -> dict[str, object]:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        entries = [{"path": path, "digest": digest, "diffId": digest} for path in paths]
        kitfile = {"manifestVersion": "1.0.0", "package": {}, "model": entries[0], "datasets": [entries[1]],
                   "docs": [entries[2]]}  # fmt: skip
        layers = [
            put(data, f"{base}.{kind}.v1.raw", annotations={"org.cncf.model.filepath": path})
            for kind, path in zip(("model", "dataset", "docs"), paths, strict=True)
        ]
        config = put(json.dumps(kitfile).encode(), f"{base}.config.v1+json")
        manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
        entry = put(manifest, "application/vnd.oci.image.manifest.v1+json",
                    annotations={"org.opencontainers.image.ref.name": "raw:1"})  # fmt: skip
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return folder

    return make


def test_second_time_is_an_error_and_the_switches_help(kits, target):
    """What is there is an error; -o replaces it; -i leaves it and writes what is missing."""
    report = run(kits, "myllm:3.1.4", target)
    before = {name: (target / name).read_bytes() for name in names(target)}
    with pytest.raises(PathExists):
        run(kits, "myllm:3.1.4", target)
    changed, missing = names(target / "model")[:2]
    (target / "model" / changed).write_bytes(b"changed")
    (target / "model" / missing).unlink()
    second = run(kits, "myllm:3.1.4", target, ignore_existing=True)
    assert (second.files, second.skipped) == (1, report.files - 2)  # the Kitfile is neither
    assert (target / "model" / changed).read_bytes() == b"changed"
    assert run(kits, "myllm:3.1.4", target, overwrite=True).files == report.files
    assert {name: (target / name).read_bytes() for name in names(target)} == before


def test_kitfile_that_differs_is_an_error(kits, target):
    """Another Kitfile stays, also with -i, as in kit; an equal one is no error; -o replaces it."""
    run(kits, "empty:0", target)
    run(kits, "empty:0", target)
    right = (target / "Kitfile").read_bytes()
    for other in (right + b"\n", right[:-1] + b"x", b""):
        (target / "Kitfile").write_bytes(other)
        for ignore in (False, True):
            with pytest.raises(KitfileDiffers):
                run(kits, "empty:0", target, ignore_existing=ignore)
        assert (target / "Kitfile").read_bytes() == other
    run(kits, "empty:0", target, overwrite=True)
    assert (target / "Kitfile").read_bytes() == right


def test_layers_with_one_path_keep_their_order(store, bring, make_layout, make_layer, tmp_path, target):
    """Two layers that have a path in common: an error, or the later with -o, or the earlier with -i."""
    first, second = {"model/x": b"1" * 300_000}, {"model/x": b"2", "model/y": b"y"}
    bring(store, make_layout(tmp_path / "layout", "two:1", [make_layer("", first), make_layer("+gzip", second)]))
    with pytest.raises(PathExists):
        run(store, "two:1", target)
    run(store, "two:1", target / "o", overwrite=True)
    run(store, "two:1", target / "i", ignore_existing=True)
    assert (target / "o/model/x").read_bytes() == b"2"
    assert (target / "i/model/x").read_bytes() == first["model/x"]
    assert (target / "i/model/y").read_bytes() == b"y"


def test_layer_of_unknown_type_is_passed_over(store, bring, make_layout, make_layer, tmp_path, target):
    """A layer whose media type nobody knows is warned of and skipped."""
    layers = [make_layer("", {"x": b"x"}), ("application/vnd.example.unknown.v9", b"what")]
    bring(store, make_layout(tmp_path / "layout", "odd:1", layers))
    told: list[str] = []
    unpack(store, parse_reference("odd:1"), target, warn=told.append)
    assert names(target) == ["Kitfile", "x"]
    assert len(told) == 1 and "application/vnd.example.unknown.v9" in told[0]


def test_rot_leaves_no_wrong_file(store, bring, make_layout, make_layer, tmp_path, target):
    """A layer that changed on disk ends it with LayerCorrupt; whatever has its name is right."""
    files = {f"model/{number}": os.urandom(300_000) for number in range(20)}
    bring(store, make_layout(tmp_path / "layout", "rot:1", [make_layer("+gzip", files)]))
    blob = max((path for path in (store.home / "blobs").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(raw)
    with pytest.raises(LayerCorrupt):
        run(store, "rot:1", target)
    assert names(target)[0] == "Kitfile"
    for name in names(target)[1:]:
        assert (target / name).read_bytes() == files[name]


def test_interrupt_reaches_the_caller_and_ends_the_work():
    """SIGINT ends the waiting; the task at hand ends, those that wait are dropped, and then the end is told."""
    told, arrived = [], threading.Event()

    def handler(_number: int, _frame: object) -> None:
        arrived.set()
        raise KeyboardInterrupt

    def work(crew: Crew) -> None:
        crew.on_end(lambda: told.append("end"))

        def first() -> None:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            arrived.wait()
            while not is_cancelled(crew):
                os.sched_yield()
            told.append("first")

        crew.submit(first)
        while not is_cancelled(crew):
            crew.submit(arrived.wait)
        crew.submit(lambda: told.append("begun after all"))

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_apart("test", work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == ["first", "end"]


def is_cancelled(crew: Crew) -> bool:
    """Whether the crew begins nothing more."""
    try:
        crew.check()
    except Cancelled:
        return True
    return False


def test_interrupted_command_leaves_whole_files_only(store, bring, make_layout, make_layer, tmp_path, target):
    """A command that gets SIGINT while it writes exits with 130; what has its name is whole, nothing else is there."""
    files = {f"model/{number}": bytes([number]) * (24 << 20) for number in range(8)}
    bring(store, make_layout(tmp_path / "layout", "big:1", [make_layer("+gzip", files)]))
    command = [sys.executable, "-c", "from kitfs.cli.main import main; main()"]
    environment = {**os.environ, "KITFS_HOME": str(store.home), "KITOPS_HOME": str(tmp_path / "none")}
    with subprocess.Popen(
        [*command, "unpack", "localhost/big:1", "-d", target], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("Unpacking model"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode in (0, 130)  # 0: it was through before the signal came
    for name in names(target):
        assert name == "Kitfile" or (target / name).read_bytes() == files[name]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_full_disk_leaves_whole_files_only(store, bring, make_layout, make_layer, tmp_path, target):
    """Where the disk is full an error says so, with the file; what has its name is whole, nothing else is there."""
    files = {f"model/{number}": os.urandom(700_000) for number in range(10)}
    bring(store, make_layout(tmp_path / "layout", "big:1", [make_layer("", files)]))
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", target], check=True, timeout=60)
    try:
        with pytest.raises(TargetFull) as caught:
            run(store, "big:1", target)
        assert caught.value.path.startswith(b"model/")
        left = names(target)
        assert 0 < len(left) < len(files)
        for name in left:
            assert name == "Kitfile" or (target / name).read_bytes() == files[name]
        subprocess.run(["mount", "-o", "remount,ro", target], check=True, timeout=60)
        with pytest.raises(UnpackFailed, match="Read-only file system"):
            run(store, "big:1", target, overwrite=True)
    finally:
        subprocess.run(["umount", "-l", target], check=True, timeout=60)


def test_swapped_directories_lead_nowhere(store, bring, make_layout, make_layer, tmp_path, target, monkeypatch):
    """While directories and files of the target are swapped for links without a pause, nothing outside is written.

    150 rounds, 10 000 with KITFS_CAMPAIGN=1; each unpacks into a new directory under the attacked name, and keeps only
    two directories open, so that all are opened again and again.
    """
    monkeypatch.setattr(unpack_target, "_DIRECTORIES_MAX", 2)
    first = {f"d{folder}/f{number}": b"new" * 99 for number in range(8) for folder in range(6)}
    second = {f"d{folder}/e/f{number}": b"new" * 99 for number in range(4) for folder in (1, 4)}
    second["d0/large"] = bytes(2 << 20)
    bring(store, make_layout(tmp_path / "layout", "kit:1", [make_layer("", first), make_layer("+gzip", second)]))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"keep")
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    status = os.stat(outside / "victim")
    outcomes = {"whole": 0, "refused": 0, "linked": 0}
    attacker = subprocess.Popen([sys.executable, "-c", ATTACKER, target, outside, counter])
    try:
        for number in range(ROUNDS):
            try:
                run(store, "kit:1", target, overwrite=True)
                outcomes["whole"] += 1
            except KitfsError as error:
                outcomes["linked" if isinstance(error, PathIsLink) else "refused"] += 1
            assert os.listdir(outside) == ["victim"], f"round {number}"
            found = os.stat(outside / "victim")
            assert (found.st_mtime_ns, found.st_size, found.st_nlink) == (status.st_mtime_ns, status.st_size, 1)
            trash = tmp_path / f"trash-{number}"
            target.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)  # one last swap may still be on its way there
        assert attacker.poll() is None
    finally:
        attacker.kill()
        attacker.wait()
    swaps = int.from_bytes(counter.read_bytes(), "little")
    print(f"\n{ROUNDS} rounds, {swaps} swaps: {outcomes}")
    assert swaps > ROUNDS
    assert outcomes["linked"], "the attacker never met a directory that was to be opened"
