"""kitfs mounts ModelKits: plain read-only files over one deduplicated, verified store."""

__version__ = "0.1.0"
