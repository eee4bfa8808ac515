"""What a mounted view looks like to other processes."""

import hashlib
import json

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

READ_HASH = """
import hashlib, sys
with open(sys.argv[1] + "/" + sys.argv[2], "rb", buffering=0) as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
"""

READ_ERRNO = """
import errno, os, sys
try:
    fd = os.open(sys.argv[1] + "/" + sys.argv[2], os.O_RDONLY)
    print(len(os.pread(fd, 4096, 0)))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("view", ["sample", "blocking"])
def test_every_byte_is_at_its_place(make_mount, sample, view):
    """Files that are ready, that need a thread, and that are memoryviews read as the view has them."""
    mount = make_mount(view)
    for name in ("hello.txt", "big.bin", "slow.bin", "views.bin", "empty"):
        file = sample.FILES[name.encode()]
        assert mount.run(READ_HASH, name) == hashlib.sha256(file.make(0, file.size)).hexdigest(), name


def test_direct_reads_and_maps_give_the_same_bytes(mount, sample):
    """O_DIRECT, which bypasses the page cache, is short only at the end; MAP_SHARED works."""
    code = """
    import hashlib, mmap, os, sys
    path = sys.argv[1] + "/big.bin"
    size = os.stat(path).st_size
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 21)
    digest, at = hashlib.sha256(), 0
    while at < size:
        count = os.preadv(fd, [buffer], at)
        assert count == min(1 << 21, size - at), (at, count)
        digest.update(buffer[:count])
        at += count
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        print(digest.hexdigest() == hashlib.sha256(shared).hexdigest(), digest.hexdigest())
    """
    expected = hashlib.sha256(sample.content(0, sample.BIG_SIZE)).hexdigest()
    assert mount.run(code) == f"True {expected}"


def test_stat_shows_what_the_view_says(mount, sample):
    """Size, blocks, block size, times, modes and the symlink's target are those of the view."""
    code = """
    import json, os, sys
    root = sys.argv[1]
    big, many, link = (os.lstat(root + name) for name in ("/big.bin", "/many", "/link"))
    print(json.dumps([big.st_size, big.st_blocks, big.st_blksize, big.st_mtime_ns, oct(big.st_mode),
                      oct(many.st_mode), oct(link.st_mode), os.readlink(root + "/link"),
                      open(root + "/link").read(), os.lstat(root).st_ino, big.st_ino]))
    """
    size, blocks, block_size, mtime_ns, *rest = json.loads(mount.run(code))
    assert size == sample.BIG_SIZE
    assert blocks == -(-sample.BIG_SIZE // 512)
    assert block_size & (block_size - 1) == 0
    assert mtime_ns == sample.MTIME_NS
    big = sample.NAMES[b"big.bin"]
    assert rest == ["0o100444", "0o40555", "0o120777", "hello.txt", "hello\n", 1, big]


@pytest.mark.parametrize("view", ["sample", "blocking"])
def test_directory_of_ten_thousand_lists_each_entry_once(make_mount, sample, view):
    """Reading a large directory gives every name once, with its kind."""
    code = """
    import os, sys
    entries = [(entry.name, entry.is_file(), entry.inode()) for entry in os.scandir(sys.argv[1] + "/many")]
    print(len(entries), len(set(entries)), all(file for _, file, _ in entries), min(entries)[0], max(entries)[0])
    """
    assert make_mount(view).run(code) == f"{sample.MANY} {sample.MANY} True 00000 09999"


MUTATE = """
import errno, os, sys
root = sys.argv[1] + "/"
file, absent = root + "hello.txt", root + "absent"
calls = {
    "create": lambda: os.open(absent, os.O_CREAT | os.O_WRONLY),
    "open for writing": lambda: os.open(file, os.O_WRONLY),
    "open for both": lambda: os.open(file, os.O_RDWR),
    "open and truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
    "append": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
    "truncate": lambda: os.truncate(file, 0),
    "mkdir": lambda: os.mkdir(absent),
    "mknod": lambda: os.mknod(absent),
    "mkfifo": lambda: os.mkfifo(absent),
    "symlink": lambda: os.symlink("x", absent),
    "link": lambda: os.link(file, absent),
    "rename": lambda: os.rename(file, absent),
    "unlink": lambda: os.unlink(file),
    "rmdir": lambda: os.rmdir(root + "many"),
    "chmod": lambda: os.chmod(file, 0o600),
    "chown": lambda: os.chown(file, 1, 1),
    "utime": lambda: os.utime(file, (1, 1)),
    "touch": lambda: os.utime(file),
    "setxattr": lambda: os.setxattr(file, "user.x", b"y"),
    "removexattr": lambda: os.removexattr(file, "user.x"),
}
def outcome(call):
    try:
        return f"returned {call()}"
    except OSError as error:
        return errno.errorcode[error.errno]
print({name: found for name, call in calls.items() if (found := outcome(call)) != "EROFS"})
print(open(file).read())
"""


@pytest.mark.parametrize("read_only", [True, False], ids=["refused-by-the-kernel", "refused-by-the-handlers"])
def test_every_mutating_call_is_erofs(make_mount, read_only):
    """Nothing can be changed, also when the mount was not made read-only, and the file is still there."""
    mount = make_mount(read_only=read_only)
    assert mount.run(MUTATE).split() == ["{}", "hello"]
    assert mount.stats()["errors"] == 0


def test_second_load_makes_no_read_at_all(mount, sample):
    """What has been read stays in the page cache over close and open, for read and for mmap."""
    mount.run(READ_HASH, "big.bin")
    before = mount.stats()
    assert before["bytes_read"] >= sample.BIG_SIZE
    mount.run(READ_HASH, "big.bin")
    mount.run("import mmap, os, sys; fd = os.open(sys.argv[1] + '/big.bin', 0); bytes(mmap.mmap(fd, 0, prot=1))")
    after = mount.stats()
    assert after["reads"] == before["reads"]
    assert after["opens"] == before["opens"] + 2


def test_names_are_asked_for_once(mount):
    """A loader that stats dozens of times, also what is not there, costs one lookup a name."""
    code = """
    import os, sys
    for _ in range(50):
        for name in ("hello.txt", "absent", "many/00001", "many/absent"):
            os.path.exists(sys.argv[1] + "/" + name)
    """
    mount.run(code)
    mount.run(code)
    assert mount.stats()["lookups"] == 5


FAULTS = {
    "faulty-exception": "EIO",
    "faulty-exception-in-thread": "EIO",
    "faulty-exit": "EIO",
    "faulty-interrupt": "EIO",
    "faulty-digest": "EIO",
    "faulty-oserror": "EIO",
    "faulty-blocking": "EIO",
    "faulty-errno": "EIO",
    "faulty-missing": "EIO",
    "faulty-text": "EIO",
    "faulty-nothing": "EIO",
    "faulty-strided": "EIO",
    "faulty-short": "EIO",
    "faulty-short-in-thread": "EIO",
    "faulty-long": "EIO",
    "faulty-lookup": "EIO",
    "faulty-attributes": "EIO",
    "full": "EMFILE",
    "absent": "ENOENT",
}


def test_faults_of_a_view_reach_the_reader_as_errno_and_the_session_goes_on(mount, sample):
    """Each fault costs the request that met it and nothing else; the same worker answers the next one."""
    assert {name.decode() for name in sample.FILES if name.startswith(b"faulty")} <= FAULTS.keys()
    for name, expected in FAULTS.items():
        assert mount.run(READ_ERRNO, name) == expected, name
        assert mount.run(READ_ERRNO, "hello.txt") == "6", name
    assert mount.worker.poll() is None
    assert mount.stats()["errors"] >= len(FAULTS) - 2
    assert "span is damaged" in mount.log()


def test_failed_read_does_not_shorten_the_file(mount):
    """After an answer that would have been short the file has its size, and can be opened again."""
    mount.run(READ_ERRNO, "faulty-short")
    assert mount.run("import os, sys; print(os.stat(sys.argv[1] + '/faulty-short').st_size)") == "4096"


def test_statfs_xattrs_and_access_answer(mount, sample):
    """Size and number of all files, the state of one, and no writing."""
    code = """
    import errno, json, os, sys
    root = sys.argv[1]
    shown = os.statvfs(root)
    try:
        os.getxattr(root, "user.kitfs.state")
    except OSError as error:
        missing = errno.errorcode[error.errno]
    states = [os.getxattr(root + "/" + name, "user.kitfs.state").decode() for name in ("hello.txt", "big.bin")]
    print(json.dumps([shown.f_blocks, shown.f_bfree, shown.f_files, shown.f_namemax, states, missing,
                      os.listxattr(root + "/hello.txt"), os.access(root + "/hello.txt", os.W_OK),
                      os.access(root + "/hello.txt", os.R_OK)]))
    """
    blocks, free, files, name_max, states, *rest = json.loads(mount.run(code))
    total = sum(file.size for file in sample.FILES.values())
    assert blocks == -(-total // 4096)
    assert (free, files, name_max) == (0, sample.MANY + len(sample.FILES) + 3, 255)
    assert states == ["native", "lazy"]
    assert rest == ["ENODATA", [], False, True]


def test_access_answers_without_default_permissions(make_mount):
    """Where the kernel leaves permission to the handler, reading is permitted and writing is not."""
    code = "import os, sys; print([os.access(sys.argv[1] + '/hello.txt', mode) for mode in (os.R_OK, os.W_OK)])"
    assert make_mount(read_only=False).run(code) == "[True, False]"


def test_a_read_that_takes_for_ever_holds_up_no_other(mount):
    """While one reader waits for bytes, others are served."""
    with mount.start(READ_ERRNO, "stuck") as waiting:
        mount.wait_stuck()
        assert mount.run(READ_ERRNO, "slow.bin") == "4096"
        assert waiting.poll() is None
        mount.close_worker()
        waiting.kill()
