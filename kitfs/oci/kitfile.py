"""The Kitfile: the one import for whoever reads, checks or writes one.

``kitfile_schema`` says what it holds, ``kitfile_json`` is the config blob, ``kitfile_yaml`` the file people write,
``kitfile_regenerate`` the YAML that ``kit unpack`` makes of a config, ``kitfile_validate`` the rules,
``kitfile_source`` what is wrong with one that a person wrote, and where. Reading YAML imports a YAML library (50 ms),
writing it compiles wide character classes (7 ms): both are imported when called. Pure.
"""

from __future__ import annotations

from kitfs.oci.kitfile_json import encode_kitfile_json, encode_node_json, parse_kitfile_json
from kitfs.oci.kitfile_schema import (
    Artifact,
    Code,
    Dataset,
    Docs,
    Kitfile,
    KitfileMalformed,
    McpServer,
    Model,
    ModelPart,
    Package,
    Problem,
    Prompt,
    iter_artifacts,
    replace_digests,
)
from kitfs.oci.kitfile_source import KitfileSource
from kitfs.oci.kitfile_validate import clean_path, iter_warnings, validate_kitfile

__all__ = [
    "KITFILE_NAMES",
    "KITFILE_SIZE_MAX",
    "Artifact",
    "Code",
    "Dataset",
    "Docs",
    "Kitfile",
    "KitfileMalformed",
    "KitfileSource",
    "McpServer",
    "Model",
    "ModelPart",
    "Package",
    "Problem",
    "Prompt",
    "clean_path",
    "encode_kitfile_json",
    "encode_kitfile_yaml",
    "encode_node_json",
    "encode_node_yaml",
    "iter_artifacts",
    "iter_warnings",
    "parse_kitfile_json",
    "parse_kitfile_yaml",
    "read_kitfile_source",
    "replace_digests",
    "validate_kitfile",
]

KITFILE_NAMES = ("Kitfile", "kitfile", ".kitfile")
"""Names under which kit looks for a Kitfile, in this order."""


KITFILE_SIZE_MAX = 512 * 1024
"""Bytes of YAML that are read; a config may have 4 MiB."""


def read_kitfile_source(raw: bytes) -> KitfileSource:
    """Read a Kitfile as people write it, with its problems and their lines; it is not checked yet."""
    from kitfs.oci import kitfile_yaml

    return kitfile_yaml.read_kitfile_source(raw)


def parse_kitfile_yaml(raw: bytes) -> Kitfile:
    """Read a Kitfile as people write it; its rules are not checked.

    Raises:
        KitfileMalformed: with all problems, each with its line.
    """
    source = read_kitfile_source(raw)
    source.check_notation()
    return source.kitfile


def encode_kitfile_yaml(kitfile: Kitfile) -> bytes:
    """Write a Kitfile as ``kit unpack`` regenerates it, byte for byte."""
    from kitfs.oci import kitfile_regenerate

    return kitfile_regenerate.encode_kitfile_yaml(kitfile)


def encode_node_yaml(node: object) -> bytes:
    """Write one node of a Kitfile, found by ``kitfile_select.select``, as ``kit info --filter`` does."""
    from kitfs.oci import kitfile_regenerate

    return kitfile_regenerate.encode_node_yaml(node)
