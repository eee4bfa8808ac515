"""The rules of a Kitfile beyond its notation, as kit checks them before it packs and before it unpacks. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from kitfs.oci.kitfile_schema import Kitfile, KitfileMalformed, Problem
from kitfs.oci.reference import looks_like_reference

MANIFEST_VERSION = "1.0.0"

_PART_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PART_TYPE_LENGTH_MAX = 64
_PATH_LENGTH_MAX = 4095
_COMPONENT_LENGTH_MAX = 255
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def validate_kitfile(kitfile: Kitfile) -> None:
    """Check paths, part types and names.

    Raises:
        KitfileMalformed: with all problems, sorted.
    """
    problems = sorted({problem.text for problem in iter_problems(kitfile)})
    if problems:
        raise KitfileMalformed(problems)


def iter_problems(kitfile: Kitfile) -> Iterator[Problem]:
    """All rules that a Kitfile breaks, each with the keys that it is about.

    Refused: absolute and escaping paths, URLs, a path of two entries (cleaned; no path counts as ``.``), an entry
    inside a remote dataset's path, part types other than kit's, a remote dataset without its hash, MCP bundles
    without a name, with another's name or without the ending ``.mcpb``.
    """
    for place, source, path in _iter_paths(kitfile):
        for text in _iter_path_problems(path):
            yield Problem(f"{source}: {text}", (place,))
    yield from _iter_duplicates(kitfile)
    yield from _iter_part_problems(kitfile)
    yield from _iter_remote_problems(kitfile)
    yield from _iter_server_problems(kitfile)


def iter_warnings(kitfile: Kitfile) -> Iterator[str]:
    """What a person should know and nobody refuses."""
    if kitfile.manifest_version != MANIFEST_VERSION:
        yield f"manifestVersion is {kitfile.manifest_version[:100]!r}, expected {MANIFEST_VERSION!r}"


def clean_path(path: str) -> str:
    """A path as Go's ``filepath.Clean`` leaves it: ``./a//b/../c/`` is ``a/c``, nothing is ``.``."""
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _iter_paths(kitfile: Kitfile) -> Iterator[tuple[str, str, str]]:
    """Every local path: its key, the entry it belongs to as kit names it in messages, and the path."""
    if kitfile.model is not None:
        if not looks_like_reference(kitfile.model.path):
            yield "model.path", f"model {kitfile.model.name}".rstrip(), kitfile.model.path
        for number, part in enumerate(kitfile.model.parts):
            yield f"model.parts[{number}].path", f"modelpart {part.name}".rstrip(), part.path
    for number, code in enumerate(kitfile.code):
        yield f"code[{number}].path", f"code layer {number}", code.path
    for number, dataset in enumerate(kitfile.datasets):
        if dataset.path or not dataset.remote_path:
            yield f"datasets[{number}].path", f"dataset {dataset.name}".rstrip(), dataset.path
    for number, docs in enumerate(kitfile.docs):
        yield f"docs[{number}].path", f"docs layer {number}", docs.path
    for number, prompt in enumerate(kitfile.prompts):
        yield f"prompts[{number}].path", f"prompt layer {number}", prompt.path
    for number, server in enumerate(kitfile.mcp_servers):
        yield f"mcpServers[{number}].path", f"mcpServer {server.name}".rstrip(), server.path


def _iter_path_problems(path: str) -> Iterator[str]:
    shown = repr(path[:200])
    if "\0" in path:
        yield f"path {shown} holds a NUL character"
    elif path.startswith("/"):
        yield f"absolute paths are not supported in a Kitfile (path {shown})"
    elif _URL.match(path):
        yield f"path {shown} is a URL"
    elif clean_path(path).split("/")[0] == "..":
        yield f"path {shown} leaves the directory that is packed"
    encoded = path.encode(errors="surrogateescape")
    if len(encoded) > _PATH_LENGTH_MAX or any(len(p) > _COMPONENT_LENGTH_MAX for p in encoded.split(b"/")):
        yield f"path {shown} is too long"


def _iter_duplicates(kitfile: Kitfile) -> Iterator[Problem]:
    users: dict[str, list[tuple[str, str]]] = {}
    for place, source, path in _iter_paths(kitfile):
        users.setdefault(clean_path(path), []).append((place, source))
    for path, found in users.items():
        if len(found) > 1:
            places, sources = zip(*found, strict=True)
            yield Problem(f"{', '.join(sources[:-1])} and {sources[-1]} use the same path {path}", places)


def _iter_part_problems(kitfile: Kitfile) -> Iterator[Problem]:
    for number, part in enumerate(kitfile.model.parts if kitfile.model is not None else ()):
        places = (f"model.parts[{number}].type",)
        name = f"modelpart {part.name}".rstrip()
        if part.type and _PART_TYPE.fullmatch(part.type) is None:
            yield Problem(f"{name} has invalid type (must be alphanumeric with dots, dashes, and underscores)", places)
        if len(part.type) > _PART_TYPE_LENGTH_MAX:
            yield Problem(f"{name} type is too long (at most {_PART_TYPE_LENGTH_MAX} characters)", places)


def _iter_remote_problems(kitfile: Kitfile) -> Iterator[Problem]:
    remote = []
    for number, dataset in enumerate(kitfile.datasets):
        if not dataset.remote_path:
            continue
        name, place = f"dataset {dataset.name}".rstrip(), f"datasets[{number}].remotePath"
        if dataset.remote_path.startswith("s3://"):
            if not dataset.remote_hash:
                yield Problem(f"{name} has a remotePath on S3 and no remoteHash", (place,))
        elif not looks_like_reference(dataset.remote_path):
            yield Problem(f"{name}: remotePath is neither s3://… nor a ModelKit reference", (place,))
        if dataset.path:
            remote.append((dataset.name, clean_path(dataset.path)))
    for name, outer in remote:
        for place, source, path in _iter_paths(kitfile):
            if clean_path(path).startswith(f"{outer}/"):
                yield Problem(f"{source} lies inside the path of the remote dataset {name}".rstrip(), (place,))


def _iter_server_problems(kitfile: Kitfile) -> Iterator[Problem]:
    names: set[str] = set()
    for number, server in enumerate(kitfile.mcp_servers):
        place = f"mcpServers[{number}]"
        if not server.name:
            yield Problem(f"mcpServer {number} has no name", (f"{place}.name",))
        elif server.name in names:
            yield Problem(f"two mcpServers are named {server.name}", (f"{place}.name",))
        names.add(server.name)
        if not server.path.endswith(".mcpb"):
            yield Problem(f"mcpServer {server.name}".rstrip() + ": path does not end with .mcpb", (f"{place}.path",))
