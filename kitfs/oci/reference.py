"""References to ModelKits: ``[host[:port]/]repository[:tag][@digest]``.

The grammar is kit's with the rules of the ModelKit specification v0.1: tags hold ``[A-Za-z0-9_.-]``, do not start
with ``.`` or ``-`` and end at 128 characters; a repository is slash-separated components of lower-case letters,
digits and separators (one period, one or two underscores, one or more dashes), after an optional DNS host name
with an optional port. The first part is a host when it holds ``.`` or ``:``, or is ``localhost``; without a host
a name lives under ``localhost/``. Pure; used by everyone who takes a name from a person, a tag file or a Kitfile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kitfs.digest import Digest, DigestMalformed
from kitfs.errors import MalformedError

DEFAULT_HOST = "localhost"
UNNAMED_REPOSITORY = "localhost/_"
"""Where ModelKits live that are known by their digest only, as in kit."""

REPOSITORY_LENGTH_MAX = 255
TAG_LENGTH_MAX = 128
_HOST_LENGTH_MAX = 253

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class ReferenceMalformed(MalformedError):
    """Text that breaks the grammar of references.

    Attributes:
        text: What was given.
        reason: Which rule it breaks.
    """

    hint = "a reference is [host[:port]/]repository[:tag] or …@sha256:<64 hexadecimal digits>"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"malformed reference {text[:200]!r}: {reason}")
        self.text = text
        self.reason = reason


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A parsed reference.

    Attributes:
        repository: Full name, host included: ``localhost/myllm``, ``registry.example.com:8080/acme/x``.
        tag: The tag, or None when the digest names the ModelKit.
        digest: The ModelKitID, or None.
    """

    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def host(self) -> str:
        """The registry's host name with its port; ``localhost`` for local names."""
        return self.repository.partition("/")[0]

    @property
    def path(self) -> str:
        """The repository without its host."""
        return self.repository.partition("/")[2]

    @property
    def display(self) -> str:
        """The text as kit shows it: without ``localhost/``, and a bare digest where there is no name."""
        text = str(self).removeprefix(f"{DEFAULT_HOST}/")
        return text.removeprefix("_").removeprefix("@")

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.repository}@{self.digest}"
        return self.repository if self.tag is None else f"{self.repository}:{self.tag}"


def parse_reference(text: str, *, default_tag: str | None = "latest") -> Reference:
    """Read one reference; ``name:tag@digest`` ignores the tag, as kit does.

    Args:
        text: What was given.
        default_tag: Tag of a name that has neither tag nor digest; None leaves it open.

    Raises:
        ReferenceMalformed: when a rule of the grammar is broken.
    """
    bare = _find_digest(text)
    if bare is not None:
        return Reference(UNNAMED_REPOSITORY, None, bare)
    name, at, digest_text = text.partition("@")
    cut = name.rfind("/") + 1
    last, colon, tag = name[cut:].partition(":")
    repository = _parse_repository(name[:cut] + last, text)
    if at:
        digest = _find_digest(digest_text)
        if digest is None:
            raise ReferenceMalformed(text, f"{digest_text[:100]!r} is not sha256: and 64 hexadecimal digits")
        return Reference(repository, None, digest)
    if colon:
        return Reference(repository, _parse_tag(tag, text), None)
    return Reference(repository, default_tag, None)


def parse_references(text: str, *, default_tag: str | None = "latest") -> list[Reference]:
    """Read a reference with more tags after commas, ``myllm:1.0,latest``, as ``pack -t`` and ``remove`` take it.

    Raises:
        ReferenceMalformed: when a rule of the grammar is broken, or a digest is followed by tags.
    """
    head, *tags = text.split(",")
    first = parse_reference(head, default_tag=default_tag)
    if tags and first.tag is None:
        raise ReferenceMalformed(text, "tags after a comma need a tag before it")
    return [first] + [Reference(first.repository, _parse_tag(tag, text)) for tag in tags]


def parse_repository(text: str) -> str:
    """Read a repository name and give its full form, host included.

    Raises:
        ReferenceMalformed: when a rule of the grammar is broken.
    """
    return _parse_repository(text, text)


def parse_tag(text: str) -> str:
    """Check one tag and give it back.

    Raises:
        ReferenceMalformed: when it is not a tag.
    """
    return _parse_tag(text, text)


def looks_like_reference(path: str) -> bool:
    """Whether a Kitfile's ``path`` names another ModelKit: it holds ``:`` or ``@`` and parses (kit's rule)."""
    if ":" not in path and "@" not in path:
        return False
    try:
        parse_reference(path.partition(",")[0])
    except ReferenceMalformed:
        return False
    return True


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestMalformed:
        return None


def _parse_tag(tag: str, text: str) -> str:
    if _TAG.fullmatch(tag) is None:
        raise ReferenceMalformed(
            text, f"{tag[:140]!r} is not a tag (1 to {TAG_LENGTH_MAX} of A-Z a-z 0-9 _ . -, not first . or -)"
        )
    return tag


def _parse_repository(name: str, text: str) -> str:
    if name == UNNAMED_REPOSITORY:
        return name
    first, slash, rest = name.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == DEFAULT_HOST)
    host, path = (first, rest) if is_host else (DEFAULT_HOST, name)
    _check_host(host, text)
    for component in path.split("/"):
        _check_component(component, text)
    repository = f"{host}/{path}"
    if len(repository) > REPOSITORY_LENGTH_MAX:
        raise ReferenceMalformed(text, f"a repository ends at {REPOSITORY_LENGTH_MAX} characters")
    return repository


def _check_component(component: str, text: str) -> None:
    if _COMPONENT.fullmatch(component) is not None:
        return
    if component != component.lower():
        reason = f"repository names are lower case, {component[:100]!r} is not"
    elif not component:
        reason = "a repository component is empty"
    else:
        reason = f"{component[:100]!r} is not a repository component (a-z 0-9, between them . or _ or __ or dashes)"
    raise ReferenceMalformed(text, reason)


def _check_host(host: str, text: str) -> None:
    name, colon, port = host.partition(":")
    labels = name.split(".")
    if len(name) > _HOST_LENGTH_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise ReferenceMalformed(text, f"{name[:100]!r} is not a lower-case DNS host name")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ReferenceMalformed(text, f"{port[:20]!r} is not a port (1 to 65535)")
