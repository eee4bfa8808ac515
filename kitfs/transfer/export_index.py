"""Index files of OCI layouts and of kit's storage as an export writes them: what is there stays, names are added.

Pure. Entries of others are kept with all their keys, known or not; the result is Go's JSON, as kit and oras write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from kitfs.digest import Digest
from kitfs.errors import BusyError
from kitfs.oci import go_json
from kitfs.oci.manifest import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, parse_index
from kitfs.oci.mediatype import OCI_INDEX
from kitfs.oci.strict_json import decode

Entry = dict[str, object]

NAME_ANNOTATIONS = frozenset({ANNOTATION_REF_NAME, ANNOTATION_IMAGE_NAME})


class NameTaken(BusyError):
    """A name that the destination has for another ModelKit."""

    def __init__(self, name: str, place: str, taken_by: str, hint: str) -> None:
        super().__init__(f"{place} has another ModelKit under the name {name}: {taken_by}")
        self.name = name
        self.taken_by = taken_by
        self.hint = hint


def encode_descriptor(descriptor: Descriptor) -> Entry:
    """A descriptor's keys, in the order of the image specification's struct."""
    entry: Entry = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        entry["annotations"] = dict(sorted(descriptor.annotations.items()))
    return entry


class LayoutIndex:
    """An ``index.json`` that is added to.

    Args:
        raw: Its bytes, or None where there is none.
        media_type: Whether a new one says what it is (``index.json`` does, kit's index of one repository does not).

    Raises:
        ManifestMalformed: when the bytes are no index.
    """

    def __init__(self, raw: bytes | None, *, media_type: bool = True) -> None:
        if raw is None:
            self._top: Entry = {"schemaVersion": 2}
            if media_type:
                self._top["mediaType"] = OCI_INDEX
            self._top["manifests"] = []
        else:
            parse_index(raw)
            self._top = cast("Entry", decode(raw))
        self._entries = cast("list[Entry]", self._top["manifests"] or [])
        self._top["manifests"] = self._entries

    def encode(self) -> bytes:
        """The bytes to write."""
        return go_json.encode(self._top)

    def find_name(self, name: str, full_name: str = "") -> list[Digest]:
        """What a name, or a full reference, means here; several where somebody gave it twice."""
        return [Digest.parse(str(entry["digest"])) for entry in self._entries if _is_named(entry, name, full_name)]

    def add(self, descriptor: Descriptor) -> None:
        """List a manifest, unless it is listed."""
        if not any(entry["digest"] == str(descriptor.digest) for entry in self._entries):
            self._entries.append(encode_descriptor(descriptor))

    def set_name(self, name: str, descriptor: Descriptor) -> None:
        """Give a manifest the name in its ``ref.name`` annotation; what had it stays listed, without a name.

        So does what had its full reference under another ``ref.name``.
        """
        full_name = descriptor.annotations.get(ANNOTATION_IMAGE_NAME, "")
        for entry in [entry for entry in self._entries if _is_named(entry, name, full_name)]:
            if entry["digest"] != str(descriptor.digest):
                self._unname(entry)
        if self.find_name(name):
            return
        plain = _find_plain(self._entries, str(descriptor.digest))
        if plain is not None:
            self._entries.remove(plain)
        self._entries.append(encode_descriptor(descriptor))

    def _unname(self, entry: Entry) -> None:
        others = [other for other in self._entries if other is not entry]
        if any(other["digest"] == entry["digest"] for other in others):
            self._entries[:] = others
        else:
            kept = {key: text for key, text in _annotations_of(entry).items() if key not in NAME_ANNOTATIONS}
            entry.pop("annotations")
            if kept:
                entry["annotations"] = kept


def _annotations_of(entry: Entry) -> Mapping[str, str]:
    return cast("Mapping[str, str]", entry.get("annotations") or {})


def _name_of(entry: Entry) -> str | None:
    return _annotations_of(entry).get(ANNOTATION_REF_NAME)


def _is_named(entry: Entry, name: str, full_name: str) -> bool:
    is_full = full_name != "" and _annotations_of(entry).get(ANNOTATION_IMAGE_NAME) == full_name
    return is_full or _name_of(entry) == name


def _find_plain(entries: Sequence[Entry], digest: str) -> Entry | None:
    return next((entry for entry in entries if entry["digest"] == digest and not _annotations_of(entry)), None)
