"""Writes a Kitfile as YAML, byte for byte as ``kit unpack`` regenerates it from a config blob. Pure."""

from __future__ import annotations

import msgspec

from kitfs.oci import yaml_write
from kitfs.oci.kitfile_schema import Kitfile, Package, Shape, fields_of


def encode_kitfile_yaml(kitfile: Kitfile) -> bytes:
    """Write a Kitfile: empty keys left out, no digests, ``authors`` in flow style, indent 2."""
    return yaml_write.encode(_fields(kitfile))


def encode_node_yaml(node: object) -> bytes:
    """Write one node of a Kitfile (``kitfile_select``) as ``kit info --filter`` does: lists of texts in block style."""
    if isinstance(node, tuple):
        return yaml_write.encode([_fields(item) if isinstance(item, msgspec.Struct) else item for item in node])
    return yaml_write.encode(_fields(node) if isinstance(node, msgspec.Struct) else node)


def _fields(value: msgspec.Struct) -> yaml_write.Fields:
    encoded = yaml_write.Fields()
    for field in fields_of(type(value)):
        item = getattr(value, field.attribute)
        if field.shape is Shape.ANY:
            if item is not None:
                encoded[field.key] = item
        elif field.shape is not Shape.DIGEST and (field.always or (item and item != Package())):
            encoded[field.key] = _encode(field.shape, item)
    return encoded


def _encode(shape: Shape, item: object) -> object:
    if isinstance(item, msgspec.Struct):
        return _fields(item)
    if not isinstance(item, tuple):
        return item
    if shape is Shape.TEXTS:
        return yaml_write.FlowList(item)
    return [_fields(entry) for entry in item]
