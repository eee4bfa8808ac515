"""The root of every error that kitfs raises on purpose, and its few categories.

Each package defines its own errors as facts with values (``BlobNotFound(digest)``) below one of the categories
here. The command line maps a category to an exit code and prints ``str(error)`` and ``error.hint``; nothing
else looks at the text. Errors that are not a ``KitfsError`` are bugs or the operating system's.
"""


class KitfsError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        hint: The command or change that helps, one line, or an empty string.
    """

    hint: str = ""


class NotFoundError(KitfsError):
    """A ModelKit, tag, mount or file that was asked for is not there (exit code 3)."""


class MalformedError(KitfsError):
    """Input that breaks its format (exit code 1); the message names the place in the input."""


class UsageError(KitfsError):
    """A request that can not be carried out as it was put (exit code 2)."""


class AuthenticationError(KitfsError):
    """A registry wants credentials, other ones, or more rights (exit code 4)."""


class NetworkError(KitfsError):
    """A registry does not answer, refuses, or breaks the protocol (exit code 5)."""


class IntegrityError(KitfsError):
    """Bytes that are not what their digest or checksum says (exit code 6)."""


class BusyError(KitfsError):
    """Something is mounted, in use or locked (exit code 7)."""


class DaemonError(KitfsError):
    """The daemon can not be reached or does not speak our protocol (exit code 8)."""


class FuseError(KitfsError):
    """FUSE is not usable: no /dev/fuse, no fusermount3, no permission (exit code 9)."""
