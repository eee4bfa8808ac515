"""Credentials of registries: where people have them already, and kitfs's own file.

Looked up in this order (cli.md 4), the first that has the host counts: kitfs's own file, kit's ``credentials.json``,
docker's ``config.json`` with its credential helpers, podman's ``auth.json``. All have docker's form: ``{"auths": {HOST:
{"auth": base64 of "user:password", "identitytoken": …}}, "credHelpers": {HOST: NAME}, "credsStore": NAME}``. Only
kitfs's own file is ever written: whole, 0600. A helper is ``docker-credential-NAME``, which gets the host on standard
input (https://github.com/docker/docker-credential-helpers). No message holds a secret. Used by ``auth`` and by
``kitfs login`` and ``logout``.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kitfs.errors import KitfsError, MalformedError
from kitfs.oci.strict_json import JsonMalformed, decode

FILE_SIZE_MAX = 1 << 20
HELPER_TIMEOUT_S = 30
_TOKEN_USER = "<token>"
"""The user name by which a helper says that the secret is an identity token."""

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/")
_HELPER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class CredentialsMalformed(MalformedError):
    """A file of credentials that can not be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class HelperFailed(KitfsError):
    """A credential helper that does not answer as it should."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"docker-credential-{name}: {reason}")


@dataclass(frozen=True)
class Credential:
    """What a registry knows somebody by.

    Attributes:
        username: The user.
        password: The password or access token; never shown.
        identity_token: A refresh token, in place of both; never shown.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def own_file() -> Path:
    """kitfs's own file of credentials."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "kitfs" / "credentials.json"


def find_credential(host: str, kitops_home: Path) -> Credential | None:
    """What is known for a host, or None.

    Args:
        host: With its port.
        kitops_home: kit's home.

    Raises:
        CredentialsMalformed: when a file can not be understood.
        HelperFailed: when a helper fails otherwise than by not knowing the host.
    """
    for path in _iter_files(kitops_home):
        found = _find_in(path, host)
        if found is not None:
            return found
    return None


class Configured(NamedTuple):
    """What a file of credentials names.

    Attributes:
        path: The file.
        hosts: Registries with credentials in it, or in a helper of their own.
        helpers: Names of the helpers, without ``docker-credential-``.
    """

    path: Path
    hosts: frozenset[str]
    helpers: frozenset[str]


def iter_configured(kitops_home: Path) -> Iterator[Configured]:
    """The files that there are and can be read, the strongest first. No helper is asked, and no secret looked at.

    Raises:
        CredentialsMalformed: when one can not be understood.
    """
    for path in _iter_files(kitops_home):
        config = _read(path)
        auths, of_hosts = (
            value if isinstance(value, dict) else {} for value in (config.get("auths"), config.get("credHelpers"))
        )
        helpers = [name for name in (*of_hosts.values(), config.get("credsStore")) if isinstance(name, str) and name]
        if auths or helpers:
            yield Configured(path, frozenset({*auths, *of_hosts}), frozenset(helpers))


def _iter_files(kitops_home: Path) -> Iterator[Path]:
    yield own_file()
    yield kitops_home / "credentials.json"
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    try:
        value = decode(raw, limit_bytes=FILE_SIZE_MAX, depth=16)
    except JsonMalformed as error:
        raise CredentialsMalformed(path, str(error)) from None
    if not isinstance(value, dict):
        raise CredentialsMalformed(path, "it is no JSON object")
    return value


def _names(host: str) -> tuple[str, ...]:
    """The keys that a host may have in a file."""
    if host in _DOCKER_HUB:
        return _DOCKER_HUB
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/", f"https://{host}/v2/")


def _find_in(path: Path, host: str) -> Credential | None:
    config = _read(path)
    helpers = config.get("credHelpers")
    for name in _names(host):
        helper = helpers.get(name) if isinstance(helpers, dict) else None
        if isinstance(helper, str) and (found := ask_helper(helper, name)):
            return found
    auths = config.get("auths")
    for name in _names(host):
        entry = auths.get(name) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and (found := _parse_entry(path, name, entry)):
            return found
    store = config.get("credsStore")
    if isinstance(store, str) and store:
        for name in _names(host)[:1] if host not in _DOCKER_HUB else _DOCKER_HUB:
            if found := ask_helper(store, name):
                return found
    return None


def _parse_entry(path: Path, host: str, entry: dict[str, Any]) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(identity_token=token)
    encoded = entry.get("auth")
    if not isinstance(encoded, str) or not encoded:
        return None
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise CredentialsMalformed(path, f'"auth" of {host} is not base64 of user:password') from None
    return Credential(username, password.rstrip("\0")) if colon else None


def ask_helper(name: str, host: str) -> Credential | None:
    """What a credential helper has for a host, or None when it has nothing.

    Raises:
        HelperFailed: when it is missing, takes too long, or answers something else.
    """
    if not _HELPER_NAME.fullmatch(name):
        raise HelperFailed(name, "no name of a helper")
    try:
        done = subprocess.run([f"docker-credential-{name}", "get"], input=host.encode(), capture_output=True,
                              timeout=HELPER_TIMEOUT_S, check=False)  # fmt: skip
    except OSError as error:
        raise HelperFailed(name, error.strerror or str(error)) from None
    except subprocess.TimeoutExpired:
        raise HelperFailed(name, f"no answer within {HELPER_TIMEOUT_S} s") from None
    if done.returncode != 0:
        if b"not found" in done.stdout.lower() + done.stderr.lower():
            return None
        raise HelperFailed(name, f"it ended with {done.returncode}")
    try:
        value = decode(done.stdout, limit_bytes=FILE_SIZE_MAX, depth=8)
    except JsonMalformed:
        value = None
    if not isinstance(value, dict) or not isinstance(secret := value.get("Secret"), str):
        raise HelperFailed(name, "its answer is not what a helper says")
    username = value.get("Username")
    if username == _TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username if isinstance(username, str) else "", secret)


def store_credential(host: str, credential: Credential | None) -> bool:
    """Set, or with None remove, what kitfs's own file has for a host.

    On disk when this returns: the whole file. False when there was nothing to remove.

    Raises:
        CredentialsMalformed: when the file that is there can not be understood.
        OSError: when it can not be written.
    """
    path = own_file()
    config = _read(path)
    auths = config.setdefault("auths", {})
    if not isinstance(auths, dict):
        raise CredentialsMalformed(path, '"auths" is no object')
    if credential is None and host not in auths:
        return False
    auths.pop(host, None)
    if credential is not None:
        pair = f"{credential.username}:{credential.password}"
        auths[host] = {"auth": base64.b64encode(pair.encode()).decode()}
    _write(path, json.dumps(config, indent="\t").encode())
    return True


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
