"""What a Kitfile holds: structs whose fields are in kit's order, which is the order of its JSON and YAML.

============  ===================================================================================================
object        keys in order (those with * are in JSON only)
============  ===================================================================================================
root          manifestVersion (always written), package, model, code, datasets, docs, prompts, mcpServers
package       name, version, description, license, authors (YAML flow style)
model         name, path, license, framework, format, version, description, parts, parameters, digest*, diffId*
model.parts   name, path, license, type, digest*, diffId*
code          path, description, license, digest*, diffId*
datasets      name, path, remotePath, remoteHash, description, license, parameters, digest*, diffId*
docs          path (always written), description, digest*, diffId*
prompts       name, path, description, digest*, diffId*
mcpServers    name, path, description, digest*, diffId*
============  ===================================================================================================

The structs are immutable: change one with ``msgspec.structs.replace``. ``fields_of`` is the one table that the
readers and writers of both notations walk. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from kitfs.digest import Digest
from kitfs.errors import MalformedError
from kitfs.oci.mediatype import LayerKind
from kitfs.oci.reference import looks_like_reference

StructT = TypeVar("StructT", bound=msgspec.Struct)

_PROBLEMS_SHOWN_MAX = 50
_PROBLEM_LENGTH_MAX = 500


class KitfileMalformed(MalformedError):
    """A Kitfile that breaks its format or its rules.

    Attributes:
        problems: All that were found, each with its line or key.
    """

    hint = "the keys of a Kitfile: https://kitops.org/docs/kitfile/format/"

    def __init__(self, problems: list[str]) -> None:
        shown = [f"\n  * {problem[:_PROBLEM_LENGTH_MAX]}" for problem in problems[:_PROBLEMS_SHOWN_MAX]]
        if len(problems) > len(shown):
            shown.append(f"\n  * and {len(problems) - len(shown)} more")
        super().__init__("errors in the Kitfile:" + "".join(shown))
        self.problems = problems


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What breaks a rule.

    Attributes:
        text: One line for a person, without the place.
        places: The keys it is about, as ``code[0].path``; the last one is where a person looks first.
    """

    text: str
    places: tuple[str, ...]


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """What the ModelKit as a whole is."""

    name: str = ""
    version: str = ""
    description: str = ""
    license: str = ""
    authors: tuple[str, ...] = ()


class ModelPart(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that belongs to the model and has a layer of its own."""

    name: str = ""
    path: str = ""
    license: str = ""
    type: str = ""
    digest: Digest | None = None
    diff_id: Digest | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model; its path may be a reference to another ModelKit, whose model it then is."""

    name: str = ""
    path: str = ""
    license: str = ""
    framework: str = ""
    format: str = ""
    version: str = ""
    description: str = ""
    parts: tuple[ModelPart, ...] = ()
    parameters: Any = None
    digest: Digest | None = None
    diff_id: Digest | None = None


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of code."""

    path: str = ""
    description: str = ""
    license: str = ""
    digest: Digest | None = None
    diff_id: Digest | None = None


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of data, or one that lives elsewhere (``remote_path``)."""

    name: str = ""
    path: str = ""
    remote_path: str = ""
    remote_hash: str = ""
    description: str = ""
    license: str = ""
    parameters: Any = None
    digest: Digest | None = None
    diff_id: Digest | None = None


class Docs(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of documentation."""

    path: str = ""
    description: str = ""
    digest: Digest | None = None
    diff_id: Digest | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of prompts."""

    name: str = ""
    path: str = ""
    description: str = ""
    digest: Digest | None = None
    diff_id: Digest | None = None


class McpServer(msgspec.Struct, frozen=True, kw_only=True):
    """An MCP bundle, one ``.mcpb`` file."""

    name: str = ""
    path: str = ""
    description: str = ""
    digest: Digest | None = None
    diff_id: Digest | None = None


class Kitfile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole Kitfile."""

    manifest_version: str = ""
    package: Package = Package()
    model: Model | None = None
    code: tuple[Code, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    docs: tuple[Docs, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()


class Shape(Enum):
    """What a key's value is."""

    TEXT = 1
    TEXTS = 2
    ANY = 3
    DIGEST = 4
    STRUCT = 5
    OPTIONAL_STRUCT = 6
    STRUCTS = 7


@dataclass(frozen=True, slots=True)
class Field:
    """One key of an object: its attribute, its spelling, its shape, and when it is written.

    Attributes:
        struct: The struct of its value or of the value's items, where it has one.
        always: Written even when empty.
    """

    attribute: str
    key: str
    shape: Shape
    struct: type[msgspec.Struct] | None = None
    always: bool = False


_SHAPES: dict[tuple[type, str], tuple[Shape, type[msgspec.Struct] | None]] = {
    (Kitfile, "package"): (Shape.STRUCT, Package),
    (Kitfile, "model"): (Shape.OPTIONAL_STRUCT, Model),
    (Kitfile, "code"): (Shape.STRUCTS, Code),
    (Kitfile, "datasets"): (Shape.STRUCTS, Dataset),
    (Kitfile, "docs"): (Shape.STRUCTS, Docs),
    (Kitfile, "prompts"): (Shape.STRUCTS, Prompt),
    (Kitfile, "mcp_servers"): (Shape.STRUCTS, McpServer),
    (Package, "authors"): (Shape.TEXTS, None),
    (Model, "parts"): (Shape.STRUCTS, ModelPart),
    (Model, "parameters"): (Shape.ANY, None),
    (Dataset, "parameters"): (Shape.ANY, None),
}
_ALWAYS = {(Kitfile, "manifest_version"), (Docs, "path")}


@lru_cache(maxsize=16)
def fields_of(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The keys of one object in kit's order."""
    return tuple(_field(struct, name) for name in struct.__struct_fields__)


def _field(struct: type[msgspec.Struct], name: str) -> Field:
    head, *rest = name.split("_")
    key = head + "".join(word.capitalize() for word in rest)
    default = Shape.DIGEST if name in ("digest", "diff_id") else Shape.TEXT
    shape, inner = _SHAPES.get((struct, name), (default, None))
    return Field(name, key, shape, inner, (struct, name) in _ALWAYS)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One entry of a Kitfile that has a layer of its own.

    Attributes:
        kind: The kind of its layer.
        subtype: ``prompt`` for prompts (which are code layers), else empty.
        path: As written in the Kitfile, not cleaned.
        digest: Of the layer as published; None in Kitfiles packed before kit 0.5.
        diff_id: Of the uncompressed layer; None likewise.
        place: The key of its path, as ``model.parts[0].path``.
    """

    kind: LayerKind
    subtype: str
    name: str
    path: str
    digest: Digest | None
    diff_id: Digest | None
    place: str = ""


def iter_artifacts(kitfile: Kitfile) -> Iterator[Artifact]:
    """The entries that have a layer, in the order of the manifest's layers.

    A model without a path or with a reference as its path has none, and neither has a remote dataset.
    """
    if kitfile.model is not None:
        model = kitfile.model
        if model.path and not looks_like_reference(model.path):
            yield Artifact(LayerKind.MODEL, "", model.name, model.path, model.digest, model.diff_id, "model.path")
        for number, part in enumerate(model.parts):
            yield _artifact(LayerKind.MODELPART, part, f"model.parts[{number}].path")
    for number, code in enumerate(kitfile.code):
        yield _artifact(LayerKind.CODE, code, f"code[{number}].path")
    for number, dataset in enumerate(kitfile.datasets):
        if not dataset.remote_path:
            yield _artifact(LayerKind.DATASET, dataset, f"datasets[{number}].path")
    for number, docs in enumerate(kitfile.docs):
        yield _artifact(LayerKind.DOCS, docs, f"docs[{number}].path")
    for number, prompt in enumerate(kitfile.prompts):
        yield _artifact(LayerKind.CODE, prompt, f"prompts[{number}].path", "prompt")
    for number, server in enumerate(kitfile.mcp_servers):
        yield _artifact(LayerKind.MCPB, server, f"mcpServers[{number}].path")


def _artifact(
    kind: LayerKind, entry: ModelPart | Code | Dataset | Docs | Prompt | McpServer, place: str, subtype: str = ""
) -> Artifact:
    return Artifact(kind, subtype, getattr(entry, "name", ""), entry.path, entry.digest, entry.diff_id, place)


def replace_digests(kitfile: Kitfile, digests: Iterable[tuple[Digest, Digest]]) -> Kitfile:
    """A copy in which each entry that has a layer gets its digest and diff_id, in the order of ``iter_artifacts``.

    Raises:
        ValueError: when there are not as many as entries with a layer; a caller's mistake.
    """
    pairs = iter(list(digests))
    entries: dict[str, object] = {}
    if kitfile.model is not None:
        path = kitfile.model.path
        has_layer = bool(path) and not looks_like_reference(path)
        model = _with_digest(kitfile.model, pairs) if has_layer else kitfile.model
        parts = tuple(_with_digest(part, pairs) for part in model.parts)
        entries["model"] = msgspec.structs.replace(model, parts=parts)
    for name in ("code", "datasets", "docs", "prompts", "mcp_servers"):
        entries[name] = tuple(
            entry if getattr(entry, "remote_path", "") else _with_digest(entry, pairs)
            for entry in getattr(kitfile, name)
        )
    if next(pairs, None) is not None:
        raise ValueError("more digests than entries with a layer")
    return msgspec.structs.replace(kitfile, **entries)


def _with_digest(entry: StructT, pairs: Iterator[tuple[Digest, Digest]]) -> StructT:
    found = next(pairs, None)
    if found is None:
        raise ValueError("fewer digests than entries with a layer")
    return msgspec.structs.replace(entry, digest=found[0], diff_id=found[1])
