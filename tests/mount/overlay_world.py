"""A parent's tree, an overlay over a plain copy of it, a user who does anything at random, and what must hold then."""

import ctypes
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kitfs.archive.tar_toc import MemberKind
from kitfs.modelkit.changes import Change
from kitfs.modelkit.merged import MergedEntry, MergedTree
from kitfs.modelkit.nodes import InlineContent, Modes, Node, Tree, shown_mode
from kitfs.store.outline import Outline
from kitfs.store.records import KIND_DIRECTORY, KIND_FILE, TocMember

NAMES = [b"a", b"b", b"c", b"d", b"new", b"\xff\n"]
MODES = [0o644, 0o755, 0o600, 0o700, 0o640]
FUSE = "fuse-overlayfs"
EXCHANGE = 2  # renameat2(2)
libc = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """One file or directory: ``st_mode`` and bytes."""

    mode: int
    data: bytes = b""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def make_tree(random: random.Random) -> tuple[Tree, dict[bytes, Seen]]:
    """A tree of three levels in two parts that share directories, and what it holds by path."""
    tree, seen = Tree(0), {}
    for part in range(2):
        directories, files = [b""], {}
        for _ in range(12):
            above = random.choice(directories)
            name = random.choice([b"x", b"y", b"z", *NAMES])
            path = above + b"/" + name if above else name
            known = seen.get(path)
            if path in files or path in directories or (known and not known.is_directory):
                continue
            if (known and known.is_directory) or (random.random() < 0.4 and path.count(b"/") < 3):
                directories.append(path)
                seen.setdefault(path, Seen(stat.S_IFDIR | random.choice([0o755, 0o700])))
            else:
                files[path] = bytes([part]) * random.randrange(4)
                seen[path] = Seen(stat.S_IFREG | random.choice(MODES), files[path])
        toc = [TocMember(path, KIND_DIRECTORY, stat.S_IMODE(seen[path].mode), 0, 0) for path in directories[1:]]
        toc += [TocMember(path, KIND_FILE, stat.S_IMODE(seen[path].mode), len(data), 0) for path, data in files.items()]
        tree.add(Outline.of(toc), None, inline=[b""] * (len(directories) - 1) + list(files.values()))
    return tree, seen


class OverlayWorld:
    """One overlay; ``log`` has what was done to it."""

    find_digest = None

    def __init__(self, folder: Path, seed: int, kind: str, options: str) -> None:
        """Make the lower layer.

        Args:
            folder: Empty.
            seed: Of all that is random.
            kind: ``overlay`` or ``fuse-overlayfs``.
            options: Of that.
        """
        self.random = random.Random(seed)
        self.kind, self.options = kind, options
        self.names = NAMES if kind == FUSE else [*NAMES, b".wh.a"]
        self.log: list[tuple[object, ...]] = []
        self.tree, self.before = make_tree(self.random)
        self.lower, self.upper, self.work, self.top = (folder / name for name in ("lower", "upper", "work", "mnt"))
        for path in (self.lower, self.upper, self.work, self.top):
            path.mkdir(parents=True)
            path.chmod(0o755)
        for path, seen in self.before.items():
            place = os.path.join(os.fsencode(self.lower), path)
            if seen.is_directory:
                os.mkdir(place)
            else:
                Path(os.fsdecode(place)).write_bytes(seen.data)
            os.chmod(place, shown_mode(self.tree.get_path(path), Modes.WRITABLE))

    @contextmanager
    def mounted(self) -> Iterator[None]:
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work},{self.options}".rstrip(",")
        if self.kind == FUSE:
            command, undo = ["fuse-overlayfs", "-o", options, str(self.top)], ["fusermount3", "-u", str(self.top)]
        else:
            command, undo = ["mount", "-t", "overlay", "kitfs", "-o", options, str(self.top)], ["umount", str(self.top)]
        subprocess.run(command, check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(undo, check=True)

    def read(self, merged: MergedTree, entry: MergedEntry) -> bytes:
        if entry.kind is MemberKind.DIRECTORY:
            return b""
        assert (entry.node is None) == (entry.upper is not None)
        if entry.node is not None:
            return self.bytes_of(entry.node)
        with merged.open_upper(entry) as (fd, status):
            assert status.st_size == entry.size
            return os.read(fd, 1 << 20)

    def bytes_of(self, node: Node) -> bytes:
        assert isinstance(node.content, InlineContent)
        return node.content.data

    def merge(self) -> MergedTree:
        return MergedTree(self.tree, self.upper, shown=Modes.WRITABLE, overlay=self.kind)

    def look(self) -> dict[bytes, Seen]:
        """What the overlay shows."""
        found, pending = {}, [b""]
        while pending:
            above = pending.pop()
            for name in os.listdir(self.place(above)):
                path = above + b"/" + name if above else name
                try:
                    mode = os.lstat(self.place(path)).st_mode
                except FileNotFoundError:  # a whiteout where nothing lies below it is listed, and that is all
                    continue
                data = b""
                if stat.S_ISDIR(mode):
                    pending.append(path)
                elif stat.S_ISREG(mode):
                    with open(self.place(path), "rb") as file:
                        data = file.read()
                found[path] = Seen(mode, data)
        return found

    def place(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.top), path) if path else os.fsencode(self.top)

    def act(self, count: int) -> None:
        """Do ``count`` things; what the overlay refuses is part of the world."""
        kinds = [self.write, self.write, self.replace, self.rename, self.rename, self.remove, self.recreate]
        kinds += [self.make, self.change_mode, self.link, self.special, self.touch]
        kinds += [self.exchange] if self.kind != FUSE else []  # fuse-overlayfs 1.10 loses its way in it
        for _ in range(count):
            with suppress(OSError):
                self.random.choice(kinds)()

    def pick(self, *, files: bool = True, directories: bool = True) -> bytes:
        seen = self.look()
        wanted = [path for path in sorted(seen) if (directories if seen[path].is_directory else files)]
        if not wanted:
            raise FileNotFoundError
        return self.place(self.random.choice(wanted))

    def pick_new(self) -> bytes:
        seen = self.look()
        above = self.random.choice([b"", *(path for path in sorted(seen) if seen[path].is_directory)])
        return os.path.join(self.place(above), self.random.choice([*self.names, b"x", b"y", b"z"]))

    def data(self) -> bytes:
        return bytes([self.random.choice([0, 1, 7])]) * self.random.randrange(4)

    def write(self) -> None:
        path, mode, data = self.pick(directories=False), self.random.choice(["ab", "r+b", "wb"]), self.data()
        self.log.append(("write", path, mode, data))
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, mode) as file:
                file.write(data)

    def replace(self) -> None:
        path, data = self.pick(directories=False), self.data()
        self.log.append(("replace", path, data))
        with open(path + b".tmp", "xb") as file:
            file.write(data)
        os.rename(path + b".tmp", path)

    def rename(self) -> None:
        source, target = self.pick(), self.pick_new() if self.random.random() < 0.7 else self.pick()
        self.log.append(("rename", source, target))
        os.rename(source, target)

    def exchange(self) -> None:
        source, target = self.pick(), self.pick()
        self.log.append(("exchange", source, target))
        libc.renameat2(-100, source, -100, target, EXCHANGE)

    def remove(self) -> None:
        path = self.pick()
        self.log.append(("remove", path))
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(os.fsdecode(path))
        else:
            os.unlink(path)

    def recreate(self) -> None:
        path, inside = self.pick(files=False), self.random.random() < 0.5
        self.log.append(("recreate", path, inside))
        shutil.rmtree(os.fsdecode(path))
        os.mkdir(path)
        if inside:
            with open(os.path.join(path, self.random.choice([b"x", b"y"])), "wb") as file:
                file.write(b"inside")

    def make(self) -> None:
        path, is_directory, data = self.pick_new(), self.random.random() < 0.4, self.data()
        self.log.append(("make", path, is_directory, data))
        if is_directory:
            os.mkdir(path)
        else:
            with open(path, "xb") as file:
                file.write(data)

    def change_mode(self) -> None:
        path, mode = self.pick(), self.random.choice(MODES) | 0o600
        self.log.append(("chmod", path, mode))
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            os.chmod(path, mode | (0o100 if os.path.isdir(path) else 0))

    def link(self) -> None:
        source, target = self.pick(directories=False), self.pick_new()
        self.log.append(("link", source, target))
        os.link(source, target, follow_symlinks=False)

    def special(self) -> None:
        path = self.pick_new()
        self.log.append(("special", path))
        if self.random.random() < 0.5:
            os.symlink(b"/etc", path)
        else:
            os.mkfifo(path)

    def touch(self) -> None:
        path = self.pick()
        self.log.append(("touch", path))
        os.utime(path, (1, 1), follow_symlinks=False)

    def check(self, live: dict[bytes, Seen]) -> None:
        """The upper directory alone gives what the overlay showed."""
        merged = self.merge()
        entries = {entry.path: entry for entry in iter_entries(merged)}
        ordinary = {path: seen for path, seen in live.items() if stat.S_IFMT(seen.mode) in (stat.S_IFREG, stat.S_IFDIR)}
        assert sorted(entries.keys() ^ ordinary.keys()) == []
        assert dict(merged.others) == {path: seen.mode for path, seen in live.items() if path not in ordinary}
        after = {}
        for path, entry in entries.items():
            seen = ordinary[path]
            assert merged.find(path) == entry
            assert (entry.kind is MemberKind.DIRECTORY) == seen.is_directory
            assert self.read(merged, entry) == seen.data, path
            assert entry.size == len(seen.data)
            check_mode(entry, stat.S_IMODE(seen.mode))
            after[path] = Seen(stat.S_IFMT(seen.mode) | entry.mode, seen.data)
        assert merged.find(b"no such") is None
        changes = list(merged.iter_changes(self.find_digest))
        assert changes == sorted(changes, key=lambda change: (change.path.split(b"/"), change.kind != "D"))
        assert set(changes) == set(expect(self.before, after))
        assert len(changes) == len(set(changes))
        assert merged.is_current()


def make_up(world: OverlayWorld) -> None:
    """Fill an upper directory with marks at random, among them many that no overlay would leave."""
    random, paths = world.random, [path for path, _ in world.tree.iter_paths()]
    directories = [b""]
    for _ in range(random.randrange(2, 12)):
        above = random.choice(directories)
        path = os.path.join(above, random.choice([b"x", b"y", b"z", *NAMES]))
        place = os.path.join(os.fsencode(world.upper), path)
        target = random.choice(paths)
        redirect = b"/" + target if random.random() < 0.7 else target.rpartition(b"/")[2]
        with suppress(FileExistsError):
            match random.choice(["directory", "directory", "opaque", "redirect", "file", "metacopy", "whiteout"]):
                case "file":
                    Path(os.fsdecode(place)).open("xb").close()
                case "whiteout":
                    os.mknod(place, stat.S_IFCHR | 0o600, 0)
                case "metacopy":
                    node = world.tree.get_path(target)
                    with open(place, "xb") as file:
                        file.truncate(node.size)
                    os.setxattr(place, "trusted.overlay.metacopy", b"")
                    os.setxattr(place, "trusted.overlay.redirect", redirect)
                case kind:
                    os.mkdir(place)
                    directories.append(path)
                    if kind != "directory":
                        mark, value = ("redirect", redirect) if kind == "redirect" else ("opaque", b"y")
                        os.setxattr(place, f"trusted.overlay.{mark}", value)


def iter_entries(merged: MergedTree) -> Iterator[MergedEntry]:
    pending = [b""]
    while pending:
        children = list(merged.iter_children(pending.pop()))
        assert [entry.path for entry in children] == sorted(entry.path for entry in children)
        yield from children
        pending += [entry.path for entry in children if entry.kind is MemberKind.DIRECTORY]


def check_mode(entry: MergedEntry, live: int) -> None:
    """The mode is the live one, or what the parent records for an entry that still shows the parent's."""
    known: Node | None = entry.node or entry.replaced
    if known is not None and shown_mode(known, Modes.WRITABLE) == live:
        assert entry.mode == known.mode
    else:
        assert entry.mode == live


def expect(before: dict[bytes, Seen], after: dict[bytes, Seen]) -> Iterator[Change]:
    """The changes from one to the other, found by comparing everything."""
    for path, old in before.items():
        new, above = after.get(path), path.rpartition(b"/")[0]
        is_top = not above or (above in after and after[above].is_directory)
        if is_top and (new is None or new.is_directory != old.is_directory):
            below = sum(len(seen.data) for other, seen in before.items() if other.startswith(path + b"/"))
            yield Change("D", path, old.is_directory, below if old.is_directory else len(old.data), None)
        elif new is not None and new.is_directory == old.is_directory and new != old:
            yield Change("M", path, new.is_directory, len(old.data), len(new.data))
    for path, new in after.items():
        if path not in before or before[path].is_directory != new.is_directory:
            yield Change("A", path, new.is_directory, None, len(new.data))


def run(world: OverlayWorld) -> None:
    """Two rounds of changes, a mount for each; the upper directory tells all, mounted or not."""
    try:
        for _ in range(2):
            with world.mounted():
                world.act(15)
                if world.kind != FUSE:  # fuse-overlayfs 1.10 may show a deleted file again until it is mounted anew
                    world.check(world.look())
            with world.mounted():
                live = world.look()
                world.check(live)
            world.check(live)
    except BaseException as error:
        error.add_note(f"{world.kind} {world.options}, {world.top}: " + "\n".join(map(repr, world.log)))
        raise
