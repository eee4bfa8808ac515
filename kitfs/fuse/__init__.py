"""The FUSE side of a mount: kernel protocol pieces, the pyfuse3 adapter, the worker process that serves one mount.

Only ``kitfs.daemon`` imports from here. Nothing here decides what a ModelKit looks like: that is ``kitfs.modelkit``.
"""

from kitfs.fuse import interpose

interpose.load()  # before any module of ours imports pyfuse3
