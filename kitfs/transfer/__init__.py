"""ModelKits coming in and going out: OCI layouts and kit's local storage. Row 5 of the architecture.

May use ``kitfs.store``, ``kitfs.layer`` and the formats below them; knows nothing of trees, mounts or commands.
"""
