"""kitfs mounts ModelKits: plain files over one deduplicated, verified store.

Its Python API is what ``__all__`` names (``docs/python.md``). Each of the names is imported when it is first used, so
that the command line does not pay for them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitfs.api import KitFile, KitPath, ModelKit
    from kitfs.api import open_modelkit as open
    from kitfs.api.committing import Commit, commit
    from kitfs.errors import KitfsError
    from kitfs.oci.kitfile_schema import Kitfile

__version__ = "0.1.0"

__all__ = ["Commit", "KitFile", "KitPath", "Kitfile", "KitfsError", "ModelKit", "__version__", "commit", "open"]

_PLACES = {
    "Commit": "kitfs.api.committing:Commit",
    "KitFile": "kitfs.api:KitFile",
    "KitPath": "kitfs.api:KitPath",
    "Kitfile": "kitfs.oci.kitfile_schema:Kitfile",
    "KitfsError": "kitfs.errors:KitfsError",
    "ModelKit": "kitfs.api:ModelKit",
    "commit": "kitfs.api.committing:commit",
    "open": "kitfs.api:open_modelkit",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _PLACES.keys())
