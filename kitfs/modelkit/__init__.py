"""What a ModelKit is: resolving a reference, the tree that it shows, packing.

Synchronous, knows no FUSE and no sockets; used by the command line, by workers and by the Python API alike.
"""

TREE_VERSION = 2
"""The rules that make a tree of a ModelKit; another one when the same input would show more or number differently."""

NODES_MAX = 1 << 22
"""Nodes of a tree at most, and inode numbers set aside for each: of 2**64 there are enough for 2**42 trees."""
