"""The pyfuse3 adapter: a kernel request in, one call into a ``View``, attributes, bytes or an errno out.

Decides nothing about what a ModelKit looks like. Used by ``kitfs.fuse.worker``; one instance serves one mount.

File handles are inode numbers, so that a worker can go on with files that a dead one had opened: what an inode means
follows from the session alone. Nothing is counted per open, and FORGET is nothing to do.

Concurrency: all of it runs in one trio task per request, without a checkpoint except around a thread. Bytes that are
at hand are answered at once; only what would block goes to a thread (170 µs), at most ``THREADS`` at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NoReturn, TypeVar

import pyfuse3
import trio

from kitfs.fuse import interpose
from kitfs.fuse.deliveries import Deliveries
from kitfs.fuse.guard import Counters, ReadShort, guard
from kitfs.fuse.memory import OPENS_SIZE
from kitfs.fuse.opentable import OpenTable
from kitfs.fuse.passthrough import BackingClient, OpenModes
from kitfs.layer.reader import PendingRead
from kitfs.layer.span_pool import shared_pool
from kitfs.modelkit.served import Attributes, OpenFile
from kitfs.modelkit.tree import NodeKind, NodeNotFound
from kitfs.modelkit.view import View
from kitfs.store.backing import Backing

THREADS = max(4, 2 * (os.cpu_count() or 1))
"""Two per core, because they also wait for the disk."""

BLOCK_SIZE = 4096
"""``st_blksize``: a power of two; some readers align direct reads to it, and libc and Python read ahead by it."""

STATE_XATTR = b"user.kitfs.state"
"""``lazy``, ``partial`` or ``native``. Not listed, or a copy-up by overlayfs would write it into staging."""

_SECTOR_SIZE = 512
_NAME_MAX = 255
_READDIR_ENTRIES = 256
"""Entries in one answer: an entry takes at least 152 bytes, the kernel's buffer has 4 to 32 KiB."""

_OPEN_FILES_MAX = 512
"""Open files kept at hand; one that was dropped is opened again by its next READ."""

_TYPES = {NodeKind.FILE: stat.S_IFREG, NodeKind.DIRECTORY: stat.S_IFDIR, NodeKind.SYMLINK: stat.S_IFLNK}

_Result = TypeVar("_Result")

_reply_open = interpose.load()


@dataclass(slots=True)
class _Held:
    """A file at hand, and how many opens of it this worker has answered."""

    file: OpenFile
    opens: int = 0


class ReadOnlyOperations(pyfuse3.Operations):
    """Answers EROFS to everything that would change something."""

    async def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    setattr = _refuse
    mknod = _refuse
    mkdir = _refuse
    unlink = _refuse
    rmdir = _refuse
    symlink = _refuse
    rename = _refuse
    link = _refuse
    write = _refuse
    setxattr = _refuse
    removexattr = _refuse
    create = _refuse


@guard
class KitOperations(ReadOnlyOperations):
    """Answers the kernel's requests from a view.

    ``flush``, ``fsync``, ``fsyncdir`` and ``poll`` stay pyfuse3's ENOSYS: the kernel then never asks again and reports
    success, which saves a round trip at every close.

    Attributes:
        counters: What has been done.
        deliveries: What is in hand.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        view: View,
        on_init: Callable[[], None] = lambda: None,
        deliveries: Deliveries | None = None,
        counters: Counters | None = None,
        opens: memoryview | None = None,
        client: BackingClient | None = None,
    ) -> None:
        """Serve a view.

        Args:
            view: What is shown.
            on_init: Called when libfuse has read INIT, before it reads anything else.
            deliveries: Where requests are noted that are in hand.
            counters: Where it counts; None for itself.
            opens: Where the open table lies; None keeps it in this process.
            client: Who asks the daemon for backing files; None for nobody.
        """
        super().__init__()
        self.counters = Counters() if counters is None else counters
        self.deliveries = Deliveries() if deliveries is None else deliveries
        self._view = view
        self._on_init = on_init
        table = OpenTable(memoryview(bytearray(OPENS_SIZE)) if opens is None else opens)
        self._modes = OpenModes(table, client or BackingClient("nobody to ask"), self._find_backing)
        self._files: dict[int, _Held] = {}
        self._limiter = trio.CapacityLimiter(THREADS)

    def init(self) -> None:
        """Called by pyfuse3 when libfuse has read INIT."""
        self._on_init()

    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        """An entry by name; one that does not exist is remembered by the kernel too."""
        self.counters.lookups += 1
        try:
            return _entry(await self._ask(self._view.lookup, parent_inode, name))
        except NodeNotFound:
            missing = pyfuse3.EntryAttributes()
            missing.entry_timeout = self._view.negative_timeout_s
            return missing

    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        """What stat shows."""
        return _entry(await self._ask(self._view.attributes, inode))

    async def readlink(self, inode: int, ctx: object) -> pyfuse3.FileNameT:
        """A symlink's target."""
        return pyfuse3.FileNameT(await self._ask(self._view.read_link, inode))

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        """Open a file, for reading only; its pages in the page cache stay, or are those of the file in the store."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        backing_id = await self._modes.open(inode)
        if not backing_id:
            try:
                held = self._files.get(inode) or await self._open(inode)
            except BaseException:
                self._modes.close(inode)
                raise
            held.opens += 1
        self.counters.opens += 1
        if _reply_open is not None:
            _reply_open.mark(inode, backing_id)  # no checkpoint until pyfuse3 has answered
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> Any:
        """Bytes: as many as were asked for or as there are before the end, or an error."""
        file = (self._files.get(fh) or await self._open(fh)).file
        stop = min(off + size, file.size)
        if off >= stop:
            return b""
        data = file.read_ready(off, stop)
        if data is None:
            pending = file.begin_read(off, stop)
            data = await (self._in_thread(file.read, off, stop) if pending is None else _wait_for(pending))
        if len(data) != stop - off:
            raise ReadShort(fh, off, stop, len(data))
        self.counters.reads += 1
        self.counters.bytes_read += stop - off
        self.counters.note_spans(shared_pool().decoded_count)
        return data

    async def release(self, fh: int) -> None:
        """A descriptor was closed, and the last map of it. What a dead worker had opened finds its file again."""
        trio.lowlevel.current_trio_token().run_sync_soon(self._modes.close, fh)  # when pyfuse3 has answered
        held = self._files.get(fh)
        if held is not None:
            held.opens -= 1
            if held.opens <= 0:
                del self._files[fh]

    async def opendir(self, inode: int, ctx: object) -> pyfuse3.FileHandleT:
        """Open a directory."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Some entries with their attributes; the kernel asks again until there are none."""
        for name, attributes, cookie in await self._ask(self._entries_after, fh, start_id):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), _entry(attributes), cookie):
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing is kept for an open directory."""

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nodes of an immutable tree are never forgotten."""

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """Size and number of all that is shown; nothing is free."""
        shown = await self._ask(self._view.statistics)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = -(-shown.size // BLOCK_SIZE)
        data.f_files = shown.nodes
        data.f_namemax = _NAME_MAX
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        """The state of a file as it is now, whoever has it open; there are no other attributes."""
        state = await self._ask(self._view.state, inode) if name == STATE_XATTR else None
        if state is not None:
            return state.encode()
        raise pyfuse3.FUSEError(errno.ENODATA)

    async def listxattr(self, inode: int, ctx: object) -> list[pyfuse3.XAttrNameT]:
        """No names are listed."""
        return []

    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        """Sent only without ``default_permissions``: reading is permitted, writing never is."""
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        return True

    async def _open(self, inode: int) -> _Held:
        held = _Held(await self._ask(self._view.open, inode))
        if len(self._files) >= _OPEN_FILES_MAX:
            del self._files[next(iter(self._files))]
        return self._files.setdefault(inode, held)

    async def _find_backing(self, inode: int, renew: bool) -> Backing | None:
        if renew or self._view.blocking:
            return await self._in_thread(partial(self._view.find_backing, inode, renew=renew))
        return self._view.find_backing(inode)

    def _entries_after(self, inode: int, after: int) -> Iterable[tuple[bytes, Attributes, int]]:
        entries = islice(self._view.iter_directory(inode, after), _READDIR_ENTRIES)
        return list(entries) if self._view.blocking else entries

    async def _ask(self, method: Callable[..., _Result], *arguments: Any) -> _Result:
        """One call into the view, in a thread when the view may block."""
        if self._view.blocking:
            return await self._in_thread(method, *arguments)
        return method(*arguments)

    async def _in_thread(self, method: Callable[..., _Result], *arguments: Any) -> _Result:
        with trio.CancelScope(shield=True):
            result = await trio.to_thread.run_sync(method, *arguments, limiter=self._limiter)
        return result  # noqa: RET504 - a scope may swallow a Cancelled for all that mypy knows


async def _wait_for(pending: PendingRead) -> Any:
    """What a read gives whose bytes another thread makes: no thread is taken for waiting."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def tell() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    pending.call_when_done(tell)
    with trio.CancelScope(shield=True):
        await done.wait()
    return pending.result()


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(attributes.inode)
    entry.st_mode = pyfuse3.ModeT(_TYPES[attributes.kind] | attributes.mode)
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = -(-attributes.size // _SECTOR_SIZE)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.entry_timeout = entry.attr_timeout = attributes.timeout_s
    return entry
