"""Credentials go to the host that they belong to, and nowhere else: every header that two servers get is looked at."""

import base64
import importlib.util
import json
import os
import stat
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("registry_server", Path(__file__).with_name("server.py"))
server_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(server_module)
Answer, FakeRegistry, Request, Server = (
    server_module.Answer,
    server_module.FakeRegistry,
    server_module.Request,
    server_module.Server,
)


SECRET = "correct horse battery staple"
TOKEN = "token-of-the-token-server"


@pytest.fixture
def servers():
    """``servers(respond)``: a server; all are ended."""
    started: list[Server] = []

    def start(respond) -> Server:
        started.append(Server(respond))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def home(node):
    """A machine that is logged in to a host: ``home(host)``."""

    def make(host: str):
        machine = node("home")
        folder = machine.folder / "config/kitfs"
        folder.mkdir(parents=True)
        auth = base64.b64encode(f"me:{SECRET}".encode()).decode()
        (folder / "credentials.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        return machine

    return make


def leaks(server: Server) -> list[Request]:
    """Requests that hold the password, in any form, or the token."""
    marks = [SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode(), TOKEN, SECRET.replace(" ", "+")]
    return [one for one in server.requests if any(mark in repr(one) for mark in marks)]


def needs_basic(fake: FakeRegistry):
    """A registry that wants Basic."""

    def respond(request: Request) -> Answer:
        if request.headers.get("authorization", "").startswith("Basic "):
            return fake(request)
        return Answer(401, {"WWW-Authenticate": 'Basic realm="r"'})

    return respond


def needs_bearer(fake: FakeRegistry, realm: str, more: str = ""):
    """A registry that wants a token of ``realm``."""

    def respond(request: Request) -> Answer:
        if request.headers.get("authorization") == f"Bearer {TOKEN}":
            return fake(request)
        challenge = f'Bearer realm="{realm}",service="s",scope="repository:acme/kit:pull"{more}'
        return Answer(401, {"WWW-Authenticate": challenge})

    return respond


def give_token(_request: Request) -> Answer:
    """A token server that gives its token to everybody."""
    return Answer(body=json.dumps({"token": TOKEN, "expires_in": 300}).encode())


def test_password_goes_to_its_own_host(servers, home):
    """With Basic the registry gets it, and the pull works."""
    server = servers(needs_basic(FakeRegistry()))
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert leaks(server)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["another host", "another port", "the same host"])
def test_no_credential_follows_a_redirect(servers, home, status, place):
    """A blob that lies elsewhere is fetched without any; only the registry itself is told who asks."""
    fake = FakeRegistry()
    other = servers(fake)
    target = {"another host": other.host.replace("127.0.0.1", "localhost"), "another port": other.host}.get(place)

    def respond(request: Request) -> Answer:
        if request.path == f"/v2/acme/kit/blobs/{fake.layer}":
            host = target or server.host
            return Answer(status, {"Location": f"http://{host}/v2/acme/kit/blobs/{fake.layer}?signed"})
        return fake(request)

    server = servers(needs_basic_for(respond))
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert leaks(other) == []
    assert bool(other.requests) == (target is not None)


def needs_basic_for(respond):
    """As ``needs_basic`` for any responder."""

    def guarded(request: Request) -> Answer:
        if "authorization" in request.headers or "?signed" in request.path:
            return respond(request)
        return Answer(401, {"WWW-Authenticate": 'Basic realm="r"'})

    return guarded


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "data", "https:evil"])
def test_redirect_to_no_http_address_is_refused(servers, home, scheme):
    """curl is never led to another protocol."""
    fake = FakeRegistry()

    def respond(request: Request) -> Answer:
        if "/blobs/" in request.path and fake.layer in request.path:
            return Answer(302, {"Location": f"{scheme}://127.0.0.1:1/x"})
        return fake(request)

    server = servers(respond)
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http", status=5)


def test_redirects_that_go_round_end(servers, home):
    """After five steps it is an error."""
    fake = FakeRegistry()

    def respond(request: Request) -> Answer:
        return Answer(302, {"Location": request.path}) if "/blobs/" in request.path else fake(request)

    server = servers(respond)
    done = home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http", status=5)
    assert "redirects" in done.stderr
    assert len(server.requests) < 20


def test_token_server_on_the_same_host_is_told(servers, home):
    """Another port of the registry's host may be its token server: it gets the password, the registry the token."""
    fake = FakeRegistry()
    tokens = servers(give_token)
    server = servers(needs_bearer(fake, f"http://{tokens.host}/token"))
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert tokens.requests[0].headers["authorization"].startswith("Basic ")
    assert all(one.headers.get("authorization", "").startswith(("", "Bearer")) for one in server.requests)
    assert [one for one in server.requests if SECRET in repr(one)] == []


@pytest.mark.parametrize("user", ["", "me:x@", "127.0.0.1@"])
def test_token_server_on_another_host_is_asked_without_a_password(servers, home, user):
    """It may give tokens to anybody, and gets nothing from us."""
    tokens = servers(give_token)
    other = tokens.host.replace("127.0.0.1", "localhost")
    server = servers(needs_bearer(FakeRegistry(), f"http://{user}{other}/token"))
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert tokens.requests
    assert leaks(tokens) == []


def test_upload_that_is_led_to_another_host_gets_no_password(servers, home, tmp_path):
    """The location of an upload may be anywhere; we are known to the registry alone."""
    other = servers(lambda _request: Answer(201))

    def respond(request: Request) -> Answer:
        if request.method == "POST":
            return Answer(202, {"Location": f"http://{other.host}/upload?state=x"})
        return Answer(404 if request.method == "HEAD" else 201)

    server = servers(needs_basic_for(respond))
    machine = home(server.host)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: t}\ndocs: [{path: a}]\n")
    (tmp_path / "src/a").write_text("a\n")
    machine.run("pack", tmp_path / "src", "-t", f"{server.host}/acme/kit:1")
    machine.run("push", f"{server.host}/acme/kit:1", "--plain-http")
    assert [one.method for one in other.requests] == ["PUT", "PUT"]
    assert leaks(other) == []


def test_layer_urls_are_not_followed(servers, home):
    """A descriptor's ``urls`` are another host's business."""
    other = servers(lambda _request: Answer(body=b"x"))
    fake = FakeRegistry()
    manifest = json.loads(fake.manifest)
    manifest["layers"][0]["urls"] = [f"http://{other.host}/layer"]
    fake.manifest = json.dumps(manifest).encode()
    server = servers(needs_basic(fake))
    home(server.host).run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert other.requests == []


HELPER = """#!/bin/sh
read host
echo "$1 $host" >> {log}
case $host in
  {host}) echo '{{"Username": "me", "Secret": "{secret}"}}' ;;
  *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"""


@pytest.mark.parametrize("form", ["credHelpers", "credsStore"])
def test_credential_helper_is_asked_for_its_host(servers, node, form):
    """docker's configuration may name a program that knows the password."""
    server = servers(needs_basic(FakeRegistry()))
    machine = node("home")
    program = machine.folder / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER.format(log=machine.folder / "asked", host=server.host, secret=SECRET))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    machine.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    (machine.folder / ".docker").mkdir()
    config = {"credHelpers": {server.host: "test"}} if form == "credHelpers" else {"credsStore": "test"}
    (machine.folder / ".docker/config.json").write_text(json.dumps(config))
    machine.run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    assert set((machine.folder / "asked").read_text().splitlines()) == {f"get {server.host}"}


@pytest.mark.parametrize(
    "path",
    ["config/kitfs/credentials.json", "kitops/credentials.json", ".docker/config.json", "containers/auth.json"],
)
def test_credentials_of_others_are_found(servers, node, path):
    """kitfs's own, kit's, docker's and podman's, wherever they are kept."""
    server = servers(needs_basic(FakeRegistry()))
    machine = node("home")
    file = machine.folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"me:{SECRET}".encode()).decode()
    file.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
    machine.run("pull", f"{server.host}/acme/kit:1", "--plain-http")


def test_secrets_are_in_no_message_and_no_file(servers, home):
    """Refused, with everything said that can be said: the password is nowhere but in the file that it came from."""
    server = servers(lambda _request: Answer(401, {"WWW-Authenticate": 'Basic realm="r"'}))
    machine = home(server.host)
    done = machine.run("pull", f"{server.host}/acme/kit:1", "--plain-http", "--log-level", "info", status=4)
    assert SECRET not in done.stderr + done.stdout
    store = Path(machine.environment["KITFS_HOME"])
    assert [path for path in store.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"auths": {"HOST": {"auth": "%%%"}}}', b'{"auths": 1, "auths": 2}'])
def test_broken_file_of_credentials_is_named(servers, node, raw):
    """Its place is said, and nothing of what it holds."""
    server = servers(needs_basic(FakeRegistry()))
    machine = node("home")
    file = machine.folder / "config/kitfs/credentials.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(raw.replace(b"HOST", server.host.encode()))
    done = machine.run("pull", f"{server.host}/acme/kit:1", "--plain-http", status=4 if raw == b"[]x" else 1)
    assert str(file) in done.stderr
