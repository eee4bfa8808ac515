"""GNU tar, bsdtar and tarfile as oracles: what is listed here is what all three take out, or it is refused."""

import io
import os
import posixpath
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from kitfs.archive.tar_toc import TarMalformed, TocReader

FILE, DIRECTORY = 0, 1
Tree = dict[bytes, tuple[int, bytes]]


@pytest.fixture
def readers(tmp_path: Path):
    if not shutil.which("bsdtar") or not shutil.which("tar"):
        pytest.skip("GNU tar and bsdtar (libarchive-tools) are needed")

    def run(*command: str):
        def extract(raw: bytes) -> Tree | str:
            folder = tmp_path / "out"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            environment = os.environ | {"LC_ALL": "C.UTF-8"}
            done = subprocess.run(
                [*command, "-C", folder], input=raw, capture_output=True, env=environment, check=False
            )
            return walk(folder) if done.returncode == 0 else done.stderr.decode(errors="replace")

        return extract

    flags = ["--no-same-owner", "--no-same-permissions", "-xf", "-"]
    return {"GNU tar": run("tar", *flags), "bsdtar": run("bsdtar", "--no-xattrs", *flags), "tarfile": take_tarfile}


def with_parents(found: Tree) -> Tree:
    for path in list(found):
        while b"/" in path:
            path = path.rsplit(b"/", 1)[0]
            found.setdefault(path, (DIRECTORY, b""))
    return found


def walk(folder: Path) -> Tree:
    found: Tree = {}
    root = os.fsencode(folder)
    for parent, directories, files in os.walk(root):
        for name in directories:
            found[os.path.relpath(os.path.join(parent, name), root)] = (DIRECTORY, b"")
        for name in files:
            path = os.path.join(parent, name)
            os.chmod(path, 0o600)
            found[os.path.relpath(path, root)] = (FILE, Path(os.fsdecode(path)).read_bytes())
    return found


def take_tarfile(raw: bytes) -> Tree | str:
    found: Tree = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for info in tar:
                path = os.fsencode(posixpath.normpath(info.name))
                body = tar.extractfile(info) if info.isreg() else None
                found[path] = (FILE, body.read()) if body else (DIRECTORY if info.isdir() else 9, b"")
    except Exception as error:  # noqa: BLE001  # tarfile leaks ValueError, OverflowError and more
        return repr(error)
    found.pop(b".", None)
    return with_parents(found)


def find_ours(raw: bytes) -> Tree | None:
    reader = TocReader()
    found: Tree = {}
    try:
        for piece in reader.feed(raw):
            kind, data = found.get(piece.member.path, (int(piece.member.kind), b""))
            found[piece.member.path] = (kind, data + bytes(piece.data))
        reader.close()
    except TarMalformed:
        return None
    return with_parents(found)


def test_the_corpus_is_listed_as_all_agree_or_refused(corpora, readers):
    """Each archive of Go's test data is listed as GNU tar, bsdtar and tarfile extract it, or refused."""
    listed = 0
    archives = sorted((corpora / "tar-go").glob("*.tar"))
    assert len(archives) >= 42
    for path in archives:
        raw = path.read_bytes()
        ours = find_ours(raw)
        if ours is not None:
            listed += 1
            for name, extract in readers.items():
                assert extract(raw) == ours, f"{path.name}: {name}"
    assert listed >= 12


def test_layers_of_other_programs_are_listed_as_all_agree(shared_fixtures, readers):
    """Each plain tar blob that kit and modctl wrote is accepted, and listed as the other readers do."""
    checked = 0
    for blob in sorted(shared_fixtures.glob("*/**/blobs/sha256/*")):
        raw = blob.read_bytes()
        if raw[257:262] == b"ustar":
            checked += 1
            ours = find_ours(raw)
            assert {name: extract(raw) == ours for name, extract in readers.items()} == dict.fromkeys(readers, True)
    assert checked >= 20


def test_accepted_mutants_are_listed_as_all_agree(corpora, readers):
    """Headers with random fields and a right checksum: where one is accepted, the other readers see the same tree."""
    seeds = [
        (corpora / "tar-go" / name).read_bytes() for name in ("gnu.tar", "ustar.tar", "v7.tar", "file-and-dir.tar")
    ]
    rng = random.Random(7)
    compared = 0
    while compared < 60:
        raw = bytearray(rng.choice(seeds))
        block = rng.randrange(len(raw) // 512) * 512
        at, size = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (257, 8), (345, 155), (500, 12)))
        value = rng.choice(
            (b"", b"7" * size, b"\x80", b"0 0", b" 5", b"5 ", rng.randbytes(size), b"../x", b"a/", b"/a", b"5\0x")
        )
        raw[block + at : block + at + size] = value.ljust(size, b"\0")[:size]
        for start in range(0, len(raw), 512):
            if raw[start + 257 : start + 262] == b"ustar" or start == 0:
                raw[start + 148 : start + 156] = b" " * 8
                raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
        ours = find_ours(bytes(raw))
        if ours is None or any(not path.isascii() for path in ours):
            continue  # bsdtar can not name what is not UTF-8
        compared += 1
        for name, extract in readers.items():
            assert extract(bytes(raw)) == ours, name
