"""Registries as a source of imports: ``pull`` is an import from where a reference's host is.

Used by ``kitfs pull``. A parent that a Kitfile names comes along from its own host. Manifests and configs are read into
memory; layers are followed while they arrive (``arriving``), those that the store has are not fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from kitfs.digest import Digest
from kitfs.errors import UsageError
from kitfs.oci.manifest import Descriptor, NotAModelKit, parse_manifest
from kitfs.oci.reference import DEFAULT_HOST, Reference
from kitfs.store.store import Store
from kitfs.transfer.registry.arriving import Arrivals
from kitfs.transfer.registry.client import Registry
from kitfs.transfer.registry.errors import NotInRegistry, RegistryMisbehaves
from kitfs.transfer.source import SMALL_SIZE_MAX, SourceBlob, SourceBlobMissing, SourceEntry

CONCURRENCY = 5
"""Simultaneous downloads or uploads, kit's default."""


class NoRegistry(UsageError):
    """A reference without a host, which lives in the store alone."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(f"{reference.display} names no registry")
        self.hint = f"kitfs tag {reference.display} HOST/{reference.path}   (gives it a name that does)"


class MemoryBlob(SourceBlob):
    """A blob that is in memory."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(-1, 0, len(raw), None, owned=False)
        self._raw = raw

    def iter_pieces(self) -> Iterator[memoryview]:
        """The bytes."""
        yield memoryview(self._raw)


class RemoteBlobs:
    """The blobs of one manifest in one repository."""

    def __init__(self, store: Store, registry: Registry, path: str, descriptor: Descriptor, raw: bytes,
                 concurrency: int) -> None:  # fmt: skip
        self._store = store
        self._registry = registry
        self._path = path
        self._small: dict[Digest, bytes] = {descriptor.digest: raw}
        self._descriptors: dict[Digest, Descriptor] = {}
        self._raw = raw
        self._arrivals = Arrivals(registry, path, store.layout, concurrency=concurrency)

    def open_blob(self, digest: Digest) -> SourceBlob:
        """Open a blob for reading; see ``Blobs``."""
        if digest in self._small:
            return MemoryBlob(self._small[digest])
        if not self._descriptors:
            manifest = parse_manifest(self._raw)
            self._descriptors = {layer.digest: layer for layer in (manifest.config, *manifest.layers)}
            self._small[manifest.config.digest] = self._fetch_small(manifest.config)
        if digest in self._small:
            return MemoryBlob(self._small[digest])
        descriptor = self._descriptors.get(digest)
        if descriptor is None:
            raise SourceBlobMissing(digest, f"{self._registry.host}/{self._path}")
        self._arrivals.announce([one for one in self._layers_from(digest) if self._store.find_blob(one.digest) is None])
        return self._arrivals.open(descriptor)

    def _layers_from(self, digest: Digest) -> list[Descriptor]:
        """A layer and those that follow it."""
        layers = list(self._descriptors.values())[1:]
        return layers[layers.index(self._descriptors[digest]) :]

    def _fetch_small(self, descriptor: Descriptor) -> bytes:
        pieces: list[bytes] = []

        def take(data: bytes) -> None:
            pieces.append(data)
            if sum(map(len, pieces)) > min(descriptor.size, SMALL_SIZE_MAX):
                raise RegistryMisbehaves(f"blob {descriptor.digest}", f"more than its {descriptor.size} bytes")

        self._registry.fetch_blob(self._path, descriptor.digest, take)
        return b"".join(pieces)

    def close(self, *, remove: bool) -> None:
        """Stop what is under way; with ``remove`` what has arrived is of no more use."""
        self._arrivals.close(remove=remove)


class RemoteSource:
    """Registries, by the hosts of references; a context manager.

    Attributes:
        path: How messages name it.
        origin: ``registry``.
        warnings: None; see ``Source``.
    """

    origin = "registry"

    def __init__(self, store: Store, connect: Callable[[str], Registry], *, concurrency: int = CONCURRENCY) -> None:
        """Prepare; nothing is sent.

        Args:
            store: What is there already.
            connect: Gives the registry of a host.
            concurrency: Simultaneous downloads.
        """
        self.path = Path("the registry")
        self.warnings: list[str] = []
        self._store = store
        self._connect = connect
        self._concurrency = concurrency
        self._registries: dict[str, Registry] = {}
        self._blobs: list[RemoteBlobs] = []
        self._entries: dict[Reference, SourceEntry] = {}

    def resolve(self, reference: Reference) -> Descriptor:
        """What a reference means in its registry now.

        Raises:
            NoRegistry: when it has no host.
            NotInRegistry: when there is none.
            NetworkError, AuthenticationError: when the registry does not say.
        """
        if reference.host == DEFAULT_HOST:
            raise NoRegistry(reference)
        found = self._entries.get(reference)
        if found is None:
            registry = self._registries.setdefault(reference.host, self._connect(reference.host))
            name = str(reference.digest) if reference.digest else reference.tag or "latest"
            descriptor, raw = registry.resolve(reference.path, name)
            blobs = RemoteBlobs(self._store, registry, reference.path, descriptor, raw, self._concurrency)
            self._blobs.append(blobs)
            found = SourceEntry(reference.repository, reference.tag, descriptor, blobs)
            self._entries[reference] = found
        return found.descriptor

    def iter_entries(self) -> Iterator[SourceEntry]:
        """What was resolved; a registry is never listed whole."""
        yield from self._entries.values()

    def find_entry(self, reference: Reference) -> SourceEntry | None:
        """The entry for a reference; None where its registry has none, or it names no registry."""
        try:
            self.resolve(reference)
        except (NotInRegistry, NoRegistry, NotAModelKit):
            return None
        return self._entries[reference]

    def finish(self) -> None:
        """All of it was taken in: what has arrived is removed."""
        for blobs in self._blobs:
            blobs.close(remove=True)
        self._blobs.clear()

    def close(self) -> None:
        """Stop; what has arrived is kept for the next pull."""
        for blobs in self._blobs:
            blobs.close(remove=False)
        self._blobs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
