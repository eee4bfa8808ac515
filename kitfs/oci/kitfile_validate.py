"""The rules of a Kitfile beyond its notation, as kit checks them before it packs and before it unpacks. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from kitfs.oci.kitfile_schema import Kitfile, KitfileMalformed
from kitfs.oci.reference import looks_like_reference

MANIFEST_VERSION = "1.0.0"

_PART_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PART_TYPE_LENGTH_MAX = 64
_PATH_LENGTH_MAX = 4095
_COMPONENT_LENGTH_MAX = 255
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def validate_kitfile(kitfile: Kitfile) -> None:
    """Check paths, part types and names.

    Refused: absolute and escaping paths, URLs, a path of two entries (cleaned; no path counts as ``.``), an entry
    inside a remote dataset's path, part types other than kit's, a remote dataset without its hash, MCP bundles
    without a name, with another's name or without the ending ``.mcpb``.

    Raises:
        KitfileMalformed: with all problems, sorted.
    """
    problems: set[str] = set()
    for source, path in _iter_paths(kitfile):
        problems.update(f"{source}: {problem}" for problem in _iter_path_problems(path))
    problems.update(_iter_duplicates(kitfile))
    problems.update(_iter_part_problems(kitfile))
    problems.update(_iter_remote_problems(kitfile))
    problems.update(_iter_server_problems(kitfile))
    if problems:
        raise KitfileMalformed(sorted(problems))


def iter_warnings(kitfile: Kitfile) -> Iterator[str]:
    """What a person should know and nobody refuses."""
    if kitfile.manifest_version != MANIFEST_VERSION:
        yield f"manifestVersion is {kitfile.manifest_version[:100]!r}, expected {MANIFEST_VERSION!r}"


def clean_path(path: str) -> str:
    """A path as Go's ``filepath.Clean`` leaves it: ``./a//b/../c/`` is ``a/c``, nothing is ``.``."""
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _iter_paths(kitfile: Kitfile) -> Iterator[tuple[str, str]]:
    """Every local path with the entry it belongs to, as kit names them in messages."""
    if kitfile.model is not None:
        if not looks_like_reference(kitfile.model.path):
            yield f"model {kitfile.model.name}".rstrip(), kitfile.model.path
        for part in kitfile.model.parts:
            yield f"modelpart {part.name}".rstrip(), part.path
    for number, code in enumerate(kitfile.code):
        yield f"code layer {number}", code.path
    for dataset in kitfile.datasets:
        if dataset.path or not dataset.remote_path:
            yield f"dataset {dataset.name}".rstrip(), dataset.path
    for number, docs in enumerate(kitfile.docs):
        yield f"docs layer {number}", docs.path
    for number, prompt in enumerate(kitfile.prompts):
        yield f"prompt layer {number}", prompt.path
    for server in kitfile.mcp_servers:
        yield f"mcpServer {server.name}".rstrip(), server.path


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


def _iter_duplicates(kitfile: Kitfile) -> Iterator[str]:
    users: dict[str, list[str]] = {}
    for source, path in _iter_paths(kitfile):
        users.setdefault(clean_path(path), []).append(source)
    for path, sources in users.items():
        if len(sources) > 1:
            yield f"{', '.join(sources[:-1])} and {sources[-1]} use the same path {path}"


def _iter_part_problems(kitfile: Kitfile) -> Iterator[str]:
    for part in kitfile.model.parts if kitfile.model is not None else ():
        if part.type and _PART_TYPE.fullmatch(part.type) is None:
            yield f"modelpart {part.name} has invalid type (must be alphanumeric with dots, dashes, and underscores)"
        if len(part.type) > _PART_TYPE_LENGTH_MAX:
            yield f"modelpart {part.name} type is too long (at most {_PART_TYPE_LENGTH_MAX} characters)"


def _iter_remote_problems(kitfile: Kitfile) -> Iterator[str]:
    remote = []
    for dataset in kitfile.datasets:
        if not dataset.remote_path:
            continue
        if dataset.remote_path.startswith("s3://"):
            if not dataset.remote_hash:
                yield f"dataset {dataset.name} has a remotePath on S3 and no remoteHash"
        elif not looks_like_reference(dataset.remote_path):
            yield f"dataset {dataset.name}: remotePath is neither s3://… nor a ModelKit reference"
        if dataset.path:
            remote.append((dataset.name, clean_path(dataset.path)))
    for name, outer in remote:
        for source, path in _iter_paths(kitfile):
            if clean_path(path).startswith(f"{outer}/"):
                yield f"{source} lies inside the path of the remote dataset {name}"


def _iter_server_problems(kitfile: Kitfile) -> Iterator[str]:
    names: set[str] = set()
    for number, server in enumerate(kitfile.mcp_servers):
        if not server.name:
            yield f"mcpServer {number} has no name"
        elif server.name in names:
            yield f"two mcpServers are named {server.name}"
        names.add(server.name)
        if not server.path.endswith(".mcpb"):
            yield f"mcpServer {server.name}: path does not end with .mcpb"
