"""What a ModelKit is: resolving a reference, the tree that it shows, packing.

Synchronous, knows no FUSE and no sockets; used by the command line, by workers and by the Python API alike.
"""
