"""Descriptors as manifests, indexes and kit's tag files hold them, and a reader that finds all that is wrong with them.

``DescriptorReader`` never raises for one malformed value: it notes the problem with its place, gives something in the
value's stead, and ``finish`` refuses with all of them. Pure; used by ``manifest``, which is the one import for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import MalformedError

ENTRY_COUNT_MAX = 16_384
"""More than fit into 4 MiB with real descriptors of 250 bytes."""

_MEDIA_TYPE_LENGTH_MAX = 255
_SIZE_MAX = 2**63 - 1
_PROBLEMS_SHOWN_MAX = 50
_EMPTY = Digest.of(b"")


class ManifestMalformed(MalformedError):
    """Bytes that are not a manifest or an index.

    Attributes:
        problems: Place, the key as ``layers[3].size`` or empty for the whole, and what is wrong there; all of them.
    """

    def __init__(self, reason: str, place: str = "", *, more: tuple[tuple[str, str], ...] = ()) -> None:
        self.problems = ((place, reason), *more)
        lines = [f"{place}: {reason}" if place else reason for place, reason in self.problems]
        if len(lines) == 1:
            super().__init__(f"malformed manifest: {lines[0]}")
            return
        shown = [f"\n  * {line}" for line in lines[:_PROBLEMS_SHOWN_MAX]]
        if len(lines) > len(shown):
            shown.append(f"\n  * and {len(lines) - len(shown)} more")
        super().__init__("malformed manifest:" + "".join(shown))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob by media type, digest and size.

    Attributes:
        size: In bytes.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


class DescriptorReader:
    """Reads decoded JSON and collects problems.

    Attributes:
        problems: Place and what is wrong there.
    """

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def finish(self) -> None:
        """End reading.

        Raises:
            ManifestMalformed: with all problems, when there are any.
        """
        if self.problems:
            (place, reason), *more = self.problems
            raise ManifestMalformed(reason, place, more=tuple(more))

    def note(self, reason: str, place: str) -> None:
        """Add a problem."""
        self.problems.append((place, reason))

    def descriptors(self, value: object, place: str) -> tuple[Descriptor, ...]:
        """A list of descriptors; null is an empty one."""
        if value is None:
            return ()
        if not isinstance(value, list):
            self.note("not a list", place)
            return ()
        if len(value) > ENTRY_COUNT_MAX:
            self.note(f"{len(value)} entries, at most {ENTRY_COUNT_MAX}", place)
            return ()
        return tuple(self.descriptor(item, f"{place}[{number}]") for number, item in enumerate(value))

    def descriptor(self, value: object, place: str) -> Descriptor:
        """One descriptor."""
        if not isinstance(value, dict):
            self.note("not a descriptor", place)
            return Descriptor("", _EMPTY, 0)
        media_type = value.get("mediaType")
        if not isinstance(media_type, str) or not 0 < len(media_type) <= _MEDIA_TYPE_LENGTH_MAX:
            self.note("not a media type", f"{place}.mediaType")
            media_type = ""
        digest = self._digest(value.get("digest"), f"{place}.digest")
        size = value.get("size")
        if type(size) is not int or not 0 <= size <= _SIZE_MAX:
            self.note(f"{str(size)[:40]!r} is not a size", f"{place}.size")
            size = 0
        return Descriptor(media_type, digest, size, self.annotations(value.get("annotations"), f"{place}.annotations"))

    def annotations(self, value: object, place: str) -> dict[str, str]:
        """Annotations; null is none."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.note("not an object", place)
            return {}
        for key, text in value.items():
            if not isinstance(text, str):
                self.note("not a string", f"{place}[{key[:100]!r}]")
        return value

    def media_type(self, top: dict[str, object], key: str) -> str | None:
        """A media type that may be missing or empty: None then."""
        value = top.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > _MEDIA_TYPE_LENGTH_MAX:
            self.note("not a media type", key)
            return None
        return value or None

    def _digest(self, value: object, place: str) -> Digest:
        try:
            if isinstance(value, str):
                return Digest.parse(value)
            self.note("not a digest", place)
        except DigestMalformed as error:
            self.note(str(error), place)
        return _EMPTY
