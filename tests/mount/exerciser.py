"""A program that changes the files of a directory at random, knows what each must hold, and reads it back.

Run as ``python -c SOURCE DIRECTORY SEED COUNT [list]``: COUNT steps (0: until its standard input closes), then all is
read once more. After its first step it prints a line, at the end the digest of what the directory holds and the number
of steps; anything that is not as it must be ends it with a traceback. Files whose names begin with "kept" are only
read. With ``list`` it lists the directory after each rename: else fuse-overlayfs forgets to hide the file below one
that was replaced (docs/posix.md).
"""

import hashlib
import mmap
import os
import random
import select
import sys

PIECE = 50_000
"""The largest change."""


class Exerciser:
    """The files of one directory, by name, and what they must hold."""

    def __init__(self, folder: str, seed: int, lists: bool) -> None:
        self.folder, self.rng, self.lists = folder, random.Random(seed), lists
        self.files: dict[str, bytearray] = {}
        self.steps = 0
        for name in sorted(os.listdir(folder)):
            with open(self.path(name), "rb") as file:
                self.files[name] = bytearray(file.read())
        self.looks = [self.read] * 6 + [self.read_mapped] * 2
        self.changes = [
            self.write, self.write_mapped, self.append, self.truncate,
            self.replace, self.rename, self.link, self.remove, self.chmod,
        ]  # fmt: skip

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def step(self) -> None:
        """One change or look at one file."""
        self.steps += 1
        name = self.rng.choice(sorted(self.files))
        kinds = self.looks if name.startswith("kept") else self.looks + self.changes
        self.rng.choice(kinds)(name, self.files[name])

    def _move(self, name: str, other: str) -> None:
        os.rename(self.path(name), self.path(other))
        if self.lists:
            os.listdir(self.folder)

    def _range(self, size: int) -> tuple[int, int]:
        start = self.rng.randrange(size + 1)
        return start, min(size, start + self.rng.randrange(PIECE))

    def read(self, name: str, data: bytearray) -> None:
        start, stop = self._range(len(data))
        fd = os.open(self.path(name), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, stop - start, start) == data[start:stop], (name, start, stop)
        assert os.fstat(fd).st_size == len(data), name
        os.close(fd)

    def read_mapped(self, name: str, data: bytearray) -> None:
        if not data:
            return
        start, stop = self._range(len(data))
        with open(self.path(name), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert len(mapped) == len(data) and mapped[start:stop] == data[start:stop], (name, start, stop)

    def write(self, name: str, data: bytearray) -> None:
        start, new = self.rng.randrange(len(data) + 1), self.rng.randbytes(self.rng.randrange(PIECE))
        fd = os.open(self.path(name), os.O_RDWR)
        assert os.pwrite(fd, new, start) == len(new)
        data[start : start + len(new)] = new
        if self.rng.random() < 0.1:
            os.fsync(fd)
        os.close(fd)

    def write_mapped(self, name: str, data: bytearray) -> None:
        if not data:
            return
        start, stop = self._range(len(data))
        new = self.rng.randbytes(stop - start)
        with open(self.path(name), "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[start:stop] = data[start:stop] = new

    def append(self, name: str, data: bytearray) -> None:
        new = self.rng.randbytes(self.rng.randrange(PIECE))
        with open(self.path(name), "ab") as file:
            file.write(new)
        data += new

    def truncate(self, name: str, data: bytearray) -> None:
        size = self.rng.randrange(2 * PIECE)
        os.truncate(self.path(name), size)
        data[:] = data[:size].ljust(size, b"\0")

    def replace(self, name: str, _: bytearray) -> None:
        new = self.rng.randbytes(self.rng.randrange(PIECE))
        fd = os.open(self.path("replacement"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(fd, len(new))
        os.write(fd, new)
        os.close(fd)
        name = self.rng.choice([name, f"new-{self.steps}"])
        self._move("replacement", name)
        self.files[name] = bytearray(new)

    def rename(self, name: str, data: bytearray) -> None:
        others = [one for one in self.files if not one.startswith("kept")]
        other = self.rng.choice([*others, f"renamed-{self.steps}"])
        self._move(name, other)
        del self.files[name]
        self.files[other] = data

    def link(self, name: str, data: bytearray) -> None:
        os.link(self.path(name), self.path("link"))
        assert os.stat(self.path("link")).st_nlink == 2
        os.unlink(self.path(name))
        self._move("link", name)
        assert os.stat(self.path(name)).st_size == len(data)

    def remove(self, name: str, _: bytearray) -> None:
        if len(self.files) > 1:
            os.unlink(self.path(name))
            del self.files[name]

    def chmod(self, name: str, data: bytearray) -> None:
        mode = self.rng.choice([0o644, 0o600, 0o755])
        os.chmod(self.path(name), mode)
        seen = os.stat(self.path(name))
        assert (seen.st_mode & 0o7777, seen.st_size) == (mode, len(data)), name

    def check(self) -> str:
        """Read all of it; the digest of names and bytes."""
        names = os.listdir(self.folder)
        assert sorted(names) == sorted(self.files), sorted({*names} ^ {*self.files})
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            with open(self.path(name), "rb") as file:
                assert file.read() == data, name
            digest.update(name.encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()


def main(folder: str, seed: str, count: str, lists: str = "") -> None:
    exerciser = Exerciser(folder, int(seed), lists == "list")
    while exerciser.steps < int(count) or (count == "0" and not select.select([sys.stdin], [], [], 0)[0]):
        exerciser.step()
        if exerciser.steps == 1:
            print("begun", flush=True)
    print(exerciser.check(), exerciser.steps)


main(*sys.argv[1:])
