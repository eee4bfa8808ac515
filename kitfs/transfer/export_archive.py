"""Export into a tar archive of an OCI layout: a file, or a stream.

Entries are sorted and have no times, so one plan gives one archive. ``index.json`` and ``oci-layout`` come after the
blobs: a stream that breaks off, as it does where a blob turns out to be corrupt, is no layout.
"""

from __future__ import annotations

from pathlib import Path

from kitfs.archive.tar_member import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header, padding
from kitfs.errors import BusyError
from kitfs.progress import Progress
from kitfs.store import durable
from kitfs.store.store import Store
from kitfs.transfer import export_files
from kitfs.transfer.export_files import Sink, copy_blob
from kitfs.transfer.export_index import LayoutIndex
from kitfs.transfer.export_layout import FILE_MODE, MARKER, DestinationNotUsable, add_kits
from kitfs.transfer.export_plan import ExportPlan

_FOLDER_MODE = 0o755


class DestinationTaken(BusyError):
    """A file lies where the archive is to go."""

    hint = "--force replaces it"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists")
        self.path = path


def export_archive(store: Store, plan: ExportPlan, path: Path, *, progress: Progress, full_name: bool = False,
                   force: bool = False) -> None:  # fmt: skip
    """Write a plan's ModelKits into an archive, which appears when it is whole.

    On disk when it returns: all of it.

    Args:
        store: Where from.
        plan: What; its lease is held.
        path: Where to.
        progress: Is told of each blob.
        full_name: Name everything by its full reference.
        force: Replace a file that is there.

    Raises:
        DestinationNotUsable: when the folder is not there.
        DestinationTaken: when a file is there.
        NameTaken: when two ModelKits of the plan have one name.
        BlobNotFound, BlobCorrupt: when the store does not have a blob, or other bytes under its name.
        StoreWriteFailed: when writing failed.
    """
    if not path.parent.is_dir():
        raise DestinationNotUsable(path, f"{path.parent} is not a folder")
    if path.parent.resolve().is_relative_to(store.home.resolve()):
        raise DestinationNotUsable(path, "it lies in the store")
    if path.exists() and not force:
        raise DestinationTaken(path)
    if path.exists() and not path.is_file():
        raise DestinationNotUsable(path, "it is not a file")
    index = _encode_index(plan, str(path), full_name=full_name)
    export_files.sweep(path.parent)
    with export_files.open_scratch(path.parent, FILE_MODE) as (fd, scratch):
        _write(store, plan, index, Sink(fd, scratch), progress)
        durable.sync_file(fd, scratch)
        if force:
            durable.rename_over(scratch, path)
        elif not durable.rename_new(scratch, path):
            raise DestinationTaken(path)
    durable.sync_directory(path.parent)


def export_stream(store: Store, plan: ExportPlan, fd: int, *, progress: Progress, full_name: bool = False) -> None:
    """Write an archive of a plan's ModelKits to a pipe or an open file; one that breaks off has no ``index.json``.

    Raises:
        NameTaken: when two ModelKits of the plan have one name.
        BlobNotFound, BlobCorrupt: when the store does not have a blob, or other bytes under its name.
        StoreWriteFailed: when the other end does not take it all.
    """
    path = Path("standard output")
    _write(store, plan, _encode_index(plan, str(path), full_name=full_name), Sink(fd, path), progress)


def _encode_index(plan: ExportPlan, place: str, *, full_name: bool) -> bytes:
    index = LayoutIndex(None)
    add_kits(index, plan, place, full_name=full_name, force=False)
    return index.encode()


def _write(store: Store, plan: ExportPlan, index: bytes, sink: Sink, progress: Progress) -> None:
    for name in (b"blobs", b"blobs/sha256"):
        sink.write(encode_member_header(name, kind=MemberKind.DIRECTORY, size=0, mode=_FOLDER_MODE))
    for digest in sorted(plan.blobs, key=lambda digest: digest.hex):
        blob = plan.blobs[digest]
        sink.write(_header(b"blobs/sha256/" + digest.hex.encode(), blob.size))
        step = progress.begin(blob.title, blob.size)
        copy_blob(store, digest, sink, step)
        step.finish()
        sink.write(padding(blob.size))
    for name, raw in ((b"index.json", index), (b"oci-layout", MARKER)):
        sink.write(_header(name, len(raw)) + raw + padding(len(raw)))
    sink.write(END_OF_ARCHIVE)


def _header(name: bytes, size: int) -> bytes:
    return encode_member_header(name, kind=MemberKind.FILE, size=size, mode=FILE_MODE)
