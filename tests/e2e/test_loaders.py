"""What everyday programs do to files works on a mount, and the second time it costs nothing."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = "model/model-00001-of-00002.safetensors"


@pytest.fixture
def mounted(kitfs, shared_fixtures) -> Path:
    """A kit of plain tar layers, mounted."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    return kitfs.mount("myllm:3.1.4")


@pytest.fixture
def unpacked(shared_fixtures) -> Path:
    """The same files as they were before packing."""
    return shared_fixtures / "source/myllm"


def python(code: str, *arguments: object) -> str:
    """Run code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sendfile_sends_right_bytes(mounted, unpacked, tmp_path):
    """sendfile(2) and copy_file_range's fallback copy the file's bytes."""
    code = """
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
while os.sendfile(target, source, None, 1 << 20):
    pass
"""
    python(code, mounted / MODEL, tmp_path / "sent")
    assert digest_of(tmp_path / "sent") == digest_of(unpacked / MODEL)


def test_find_cp_tar_and_sha256sum_agree_with_the_source(mounted, unpacked, tmp_path):
    """The everyday tools walk, copy, archive and hash the mount."""
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout  # noqa: E731
    assert f"{mounted}/eval/résumé naïve.csv" in run("find", str(mounted), "-type", "f").splitlines()
    run("cp", "-r", str(mounted), str(tmp_path / "copy"))
    run("tar", "-C", str(mounted), "-cf", str(tmp_path / "copy.tar"), ".")
    (tmp_path / "extracted").mkdir()
    run("tar", "-C", str(tmp_path / "extracted"), "-xf", str(tmp_path / "copy.tar"))
    for name in (MODEL, "data/train.jsonl", "src/run.sh", "eval/empty.txt"):
        wanted = digest_of(unpacked / name)
        assert run("sha256sum", str(mounted / name)).split()[0] == wanted
        assert digest_of(tmp_path / "copy" / name) == digest_of(tmp_path / "extracted" / name) == wanted


MUTATIONS = """
import errno, os, sys
root = sys.argv[1]
file, folder, new = root + "/README.md", root + "/docs", root + "/new"
calls = {
    "open for writing": lambda: os.open(file, os.O_WRONLY),
    "open for both": lambda: os.open(file, os.O_RDWR),
    "open and truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
    "create": lambda: os.open(new, os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": lambda: os.mkdir(new),
    "mknod": lambda: os.mknod(new),
    "mkfifo": lambda: os.mkfifo(new),
    "symlink": lambda: os.symlink("x", new),
    "link": lambda: os.link(file, new),
    "rename": lambda: os.rename(file, new),
    "unlink": lambda: os.unlink(file),
    "rmdir": lambda: os.rmdir(folder),
    "truncate": lambda: os.truncate(file, 0),
    "chmod": lambda: os.chmod(file, 0o600),
    "chown": lambda: os.chown(file, 1, 1),
    "utime": lambda: os.utime(file, (1, 1)),
    "setxattr": lambda: os.setxattr(file, "user.x", b"1"),
    "removexattr": lambda: os.removexattr(file, "user.x"),
}
for name, call in calls.items():
    try:
        call()
    except OSError as error:
        print(name, errno.errorcode[error.errno], sep=": ")
    else:
        print(name, "worked", sep=": ")
"""


def test_every_mutating_call_is_refused_as_read_only(mounted):
    """Each call that would change something answers EROFS."""
    lines = python(MUTATIONS, mounted).splitlines()
    assert len(lines) == 18
    assert [line for line in lines if not line.endswith(": EROFS")] == []


def test_second_load_makes_no_fuse_read(kitfs, mounted):
    """What was read once comes from the page cache, or all of it from files of its own: no READ reaches the worker."""
    read_all = "import sys; print(sum(len(open(path, 'rb').read()) for path in sys.argv[1:]))"
    paths = [mounted / MODEL, mounted / "model/vocab.txt"]
    python(read_all, *paths)
    first = kitfs.mounts()[0]["reads"]
    python(read_all, *paths)
    seen = kitfs.mounts()[0]
    assert seen["reads"] == first
    assert seen["opens"] == 2 * len(paths)


def test_second_mount_shares_blobs(kitfs, shared_fixtures):
    """Mounting a gzip kit again, and another tag of the same files, adds nothing to the store."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    code = """
import hashlib, json, os, sys
paths = [os.path.join(folder, name) for folder, _, names in os.walk(sys.argv[1]) for name in names]
print(json.dumps([hashlib.sha256(open(path, "rb").read()).hexdigest() for path in paths]))
"""

    def content() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in kitfs.home.rglob("*") if path.parent.parent.name == "sha256"}

    digests = set(json.loads(python(code, kitfs.mount("myllm:3.1.4-gzip", at="one"))))
    before = content()
    assert set(json.loads(python(code, kitfs.mount("myllm:3.1.4-gzip", at="two")))) == digests
    python(code, kitfs.mount("myllm:3.1.4-fast", at="three"))
    assert content() == before


def test_numbers_of_an_unpacked_inode_are_equal_in_two_mounts(kitfs, shared_fixtures):
    """The same tree shows the same inode numbers wherever it is mounted."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    one, two = kitfs.mount("myllm:3.1.4", at="one"), kitfs.mount("myllm:latest", at="two")
    code = (
        "import json, os, sys; print(json.dumps([os.stat(os.path.join(sys.argv[1], n)).st_ino for n in sys.argv[2:]]))"
    )
    names = ("model", MODEL, "README.md")
    assert json.loads(python(code, one, *names)) == json.loads(python(code, two, *names))


def test_reads_beyond_and_at_the_end_are_empty(mounted):
    """A read at or after the end gives no bytes, one across it gives what there is."""
    code = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(descriptor).st_size
print([len(os.pread(descriptor, 4096, at)) for at in (size - 10, size, size + 5)])
"""
    assert python(code, mounted / MODEL) == "[10, 0, 0]"
