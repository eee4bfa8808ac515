"""What can go wrong between us and a registry. No message ever holds a credential, or a URL's query."""

from __future__ import annotations

from urllib.parse import urlsplit

from kitfs.errors import AuthenticationError, NetworkError, NotFoundError


def shown(url: str) -> str:
    """A URL as messages have it: without user, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class RegistryUnreachable(NetworkError):
    """No answer, or not a whole one.

    Attributes:
        reason: In words.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{shown(url)}: {reason}")
        self.reason = reason


class RegistryRefused(NetworkError):
    """An answer that says no.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, url: str, status: int, said: str = "") -> None:
        super().__init__(f"{shown(url)}: HTTP {status}" + (f", {said}" if said else ""))
        self.status = status


class RegistryMisbehaves(NetworkError):
    """An answer that breaks the protocol, or goes beyond a limit."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{shown(url)}: {reason}")


class AccessDenied(AuthenticationError):
    """The registry wants credentials, others, or more rights."""

    def __init__(self, host: str, what: str, said: str = "") -> None:
        super().__init__(f"{host} refuses {what}" + (f": {said}" if said else ""))
        self.hint = f"kitfs login {host}"


class NotInRegistry(NotFoundError):
    """A repository, tag, manifest or blob that the registry does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not in the registry")
