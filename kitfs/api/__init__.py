"""kitfs from Python: a ModelKit's files without a mount, and commits.

What ``import kitfs`` offers lies here and is imported when it is first used; ``docs/python.md`` has examples. Calls
the same code as the commands do, and prints nothing. Knows neither click nor trio.
"""

from kitfs.api.errors import (
    ModelKitClosed,
    ModelKitForked,
    ModelKitReadOnly,
    PathIsDirectory,
    PathIsFile,
    PathMissing,
)
from kitfs.api.file import KitFile
from kitfs.api.kit import ModelKit, open_modelkit
from kitfs.api.path import KitPath

__all__ = [
    "KitFile",
    "KitPath",
    "ModelKit",
    "ModelKitClosed",
    "ModelKitForked",
    "ModelKitReadOnly",
    "PathIsDirectory",
    "PathIsFile",
    "PathMissing",
    "open_modelkit",
]
