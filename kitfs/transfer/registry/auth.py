"""Who we are to a registry: challenges answered with Basic, or with bearer tokens got for them (RFC 6750).

A credential goes to the registry's own host, and to its token server only where that is the same host, one of the same
domain above it, or a pair that is known (``_KNOWN_REALMS``); others are asked without one. Never from https to http.
Tokens are kept in memory, by scope. Token protocol: https://distribution.github.io/distribution/spec/auth/token/ .
Used by ``client``. Methods may be called from any thread.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from kitfs.oci.strict_json import JsonMalformed, decode
from kitfs.transfer.registry.credentials import Credential
from kitfs.transfer.registry.errors import AccessDenied, RegistryMisbehaves, RegistryRefused
from kitfs.transfer.registry.http import ANSWER_SIZE_MAX, Response, Transport

TOKEN_LIFE_S = 60.0
"""Of a token that says nothing of it (the token protocol's own figure)."""

TOKEN_LIFE_MAX_S = 3600.0
TOKENS_MAX = 256
_EARLY_S = 5.0
_PARAMETER = re.compile(r'\s*([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_KNOWN_REALMS = {"registry-1.docker.io": "auth.docker.io", "docker.io": "auth.docker.io"}


@dataclass(frozen=True)
class Challenge:
    """A ``WWW-Authenticate`` header.

    Attributes:
        scheme: ``basic`` or ``bearer``, in lower case.
        parameters: By lower-case name.
    """

    scheme: str
    parameters: dict[str, str]


def parse_challenge(text: str) -> Challenge:
    """Read one challenge; what can not be read of its parameters is left out."""
    scheme, _, rest = text.strip().partition(" ")
    parameters: dict[str, str] = {}
    while found := _PARAMETER.match(rest):
        quoted = found[2]
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else found[3]
        parameters.setdefault(found[1].lower(), value)
        rest = rest[found.end() :]
    return Challenge(scheme.lower(), parameters)


def may_know(registry: str, realm: str) -> bool:
    """Whether a registry's credential may go to a token server.

    Args:
        registry: The registry's URL.
        realm: The token server's.
    """
    ours, theirs = urlsplit(registry), urlsplit(realm)
    if theirs.scheme != ours.scheme and theirs.scheme != "https":
        return False
    host, other = ours.hostname or "", theirs.hostname or ""
    is_above = "." in other and not other.replace(".", "").isdigit() and host.endswith(f".{other}")
    return host == other or is_above or _KNOWN_REALMS.get(host) == other


class Authority:
    """Answers the challenges of one registry."""

    def __init__(self, transport: Transport, registry: str, find: Callable[[], Credential | None]) -> None:
        """Begin without any token.

        Args:
            transport: Sends requests to token servers.
            registry: The registry's URL, scheme and host.
            find: Looks up its credential; asked once, when one is needed.
        """
        self._transport = transport
        self._registry = registry
        self._host = urlsplit(registry).netloc
        self._find = find
        self._credential: Credential | None = None
        self._is_known = False
        self._uses_basic = False
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def header(self, scope: str) -> str | None:
        """The ``Authorization`` that is known to be wanted for a scope, or None."""
        with self._lock:
            token, until_s = self._tokens.get(scope, ("", 0.0))
            if token and time.monotonic() < until_s:
                return f"Bearer {token}"
            is_basic = self._uses_basic
        credential = self.credential() if is_basic else None
        return credential.basic if credential else None

    def credential(self) -> Credential | None:
        """The registry's credential, looked up once."""
        with self._lock:
            if self._is_known:
                return self._credential
        found = self._find()
        with self._lock:
            self._credential, self._is_known = found, True
        return found

    def answer(self, response: Response, scope: str, sent: str | None) -> str:
        """The ``Authorization`` for a request that got 401.

        Args:
            response: The answer.
            scope: What is to be done, as ``repository:NAME:pull``.
            sent: The ``Authorization`` that it was sent with.

        Raises:
            AccessDenied: when there is nothing (more) that would help.
            NetworkError: when the token server fails.
        """
        challenges = [parse_challenge(text) for text in response.challenges]
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                with self._lock:
                    self._tokens.pop(scope, None)
                token, life_s = self._fetch_token(challenge, challenge.parameters.get("scope") or scope)
                if f"Bearer {token}" != sent:
                    self._keep(scope, token, life_s)
                    return f"Bearer {token}"
        if any(challenge.scheme == "basic" for challenge in challenges):
            credential = self.credential()
            if credential is not None and credential.password and credential.basic != sent:
                with self._lock:
                    self._uses_basic = True
                return credential.basic
        raise AccessDenied(self._host, "this", "its credentials are wrong" if sent else "it wants credentials")

    def _keep(self, scope: str, token: str, life_s: float) -> None:
        with self._lock:
            if len(self._tokens) >= TOKENS_MAX:
                del self._tokens[next(iter(self._tokens))]
            self._tokens[scope] = (token, time.monotonic() + life_s - _EARLY_S)

    def _fetch_token(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        """A token and for how many seconds it holds."""
        realm = challenge.parameters["realm"]
        if urlsplit(realm).scheme not in ("http", "https"):
            raise RegistryMisbehaves(self._registry, "its token server has no http address")
        credential = self.credential() if may_know(self._registry, realm) else None
        service = challenge.parameters.get("service", "")
        if credential is not None and credential.identity_token:
            response = self._exchange_refresh(realm, service, scope, credential)
        else:
            headers = {"Authorization": credential.basic} if credential and credential.password else {}
            query = urlencode({"service": service, "scope": scope} if service else {"scope": scope}, quote_via=quote)
            response = self._transport.send("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers=headers)
        if response.status in (400, 401, 403):
            raise AccessDenied(self._host, f"a token for {scope}", "" if credential else "it wants credentials")
        if not response.is_success:
            raise RegistryRefused(realm, response.status, "the token server")
        return _parse_token(realm, response.body)

    def _exchange_refresh(self, realm: str, service: str, scope: str, credential: Credential) -> Response:
        form = {"grant_type": "refresh_token", "service": service, "scope": scope, "client_id": "kitfs"}
        form["refresh_token"] = credential.identity_token
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._transport.send("POST", realm, headers=headers, body=urlencode(form).encode())


def _parse_token(realm: str, body: bytes) -> tuple[str, float]:
    try:
        value = decode(body, limit_bytes=ANSWER_SIZE_MAX, depth=16)
    except JsonMalformed:
        value = None
    answer = value if isinstance(value, dict) else {}
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RegistryMisbehaves(realm, "the token server's answer holds no token")
    life_s = answer.get("expires_in")
    if isinstance(life_s, bool) or not isinstance(life_s, int | float):
        return token, TOKEN_LIFE_S
    return token, min(max(float(life_s), 0.0), TOKEN_LIFE_MAX_S)
