"""A registry that answers wrongly: a named error, nothing in the store, no memory or time without bound."""

import importlib.util
import json
from pathlib import Path

import pytest

from kitfs.store.fsck import check
from kitfs.store.store import Store

_SPEC = importlib.util.spec_from_file_location("registry_server", Path(__file__).with_name("server.py"))
server_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(server_module)
Answer, FakeRegistry, Server = server_module.Answer, server_module.FakeRegistry, server_module.Server


@pytest.fixture
def attack(node):
    """``attack(change, status)``: a pull from a registry for which ``change(fake, request)`` may answer."""
    started: list[Server] = []

    def run(change, status: int, fake: FakeRegistry | None = None) -> str:
        fake = fake or FakeRegistry()
        server = Server(lambda request: change(fake, request) or fake(request))
        started.append(server)
        machine = node("victim")
        done = machine.run("pull", f"{server.host}/acme/kit:1", "--plain-http", status=status)
        with Store.open(machine.folder / "store") as store:
            assert list(store.iter_tags()) == []
            assert check(store).problems == []
        return done.stderr

    yield run
    for one in started:
        one.close()


def is_layer(fake, request) -> bool:
    """Whether a request is for the layer."""
    return request.path.endswith(fake.layer)


def test_wrong_bytes(attack):
    """A layer of the right size with other bytes is an integrity error."""
    text = attack(lambda fake, request: Answer(body=bytes(10240)) if is_layer(fake, request) else None, 6)
    assert "sha256:" in text


def test_short_body(attack):
    """A connection that ends early, again and again, is a network error."""
    attack(lambda fake, request: Answer(body=b"abc", length=10240) if is_layer(fake, request) else None, 5)


def test_lying_length(attack):
    """A shorter body that says so is not the blob."""
    attack(lambda fake, request: Answer(body=b"abc") if is_layer(fake, request) else None, 5)


def test_long_body(attack):
    """More bytes than the descriptor says are not taken."""
    attack(lambda fake, request: Answer(body=bytes(20000)) if is_layer(fake, request) else None, 5)


def test_endless_body(attack):
    """A layer that never ends is cut off at its size."""
    attack(lambda fake, request: Answer(endless=True) if is_layer(fake, request) else None, 5)


def test_endless_manifest(attack):
    """A manifest that never ends is cut off at 4 MiB."""
    attack(lambda fake, request: Answer(endless=True) if "/manifests/" in request.path else None, 5)


def test_endless_config(attack):
    """A config that never ends is cut off at its size."""
    attack(
        lambda fake, request: (
            Answer(endless=True) if "/blobs/" in request.path and not is_layer(fake, request) else None
        ),
        5,
    )


def test_content_that_changes_between_ranges(attack):
    """Half of one body and half of another are not the blob."""

    def change(fake, request):
        if not is_layer(fake, request):
            return None
        if "range" in request.headers:
            start = int(request.headers["range"].removeprefix("bytes=").split("-")[0])
            body = bytes(10240 - start)
            return Answer(206, {"Content-Range": f"bytes {start}-10239/10240"}, body)
        return Answer(body=fake.blobs[fake.layer][:5000], length=10240)

    attack(change, 6)


def test_wrong_range(attack):
    """A range that begins after what was asked for leaves a hole, and is refused."""

    def change(fake, request):
        if not is_layer(fake, request):
            return None
        if "range" in request.headers:
            return Answer(206, {"Content-Range": "bytes 9000-10239/10240"}, bytes(1240))
        return Answer(body=fake.blobs[fake.layer][:5000], length=10240)

    attack(change, 5)


def test_manifest_that_is_not_what_its_digest_says(attack):
    """The digest that the registry tells beside it must be that of the bytes."""
    headers = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    attack(lambda fake, request: Answer(200, headers, fake.manifest) if "/manifests/" in request.path else None, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 1},
        {"layers": [{"mediaType": "x", "digest": "sha256:abc", "size": 1}]},
        {"layers": [{"mediaType": "x", "digest": "sha256:" + "A" * 64, "size": 1}]},
        {"layers": [{"mediaType": "x", "digest": "../../../etc/passwd", "size": 1}]},
        {"layers": [{"mediaType": "x", "digest": "sha256:" + "a" * 64, "size": -1}]},
        {"layers": [{"mediaType": "x", "digest": "sha256:" + "a" * 64, "size": 1.5}]},
        {
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": "sha256:" + "a" * 64,
                "size": 2,
            }
        },
        {"manifests": []},
    ],
)
def test_malformed_manifest(attack, change):
    """Each is refused before a layer is asked for."""
    fake = FakeRegistry()
    manifest = json.loads(fake.manifest)
    fake.manifest = json.dumps({**manifest, **change}).encode()
    attack(lambda fake, request: None, 1, fake)


def test_body_that_is_not_its_media_type(attack):
    """A tar that is none is named as such, and nothing of it is kept."""
    fake = FakeRegistry(b"no tar at all" * 100)
    manifest = json.loads(fake.manifest)
    manifest["layers"][0]["mediaType"] = "application/vnd.kitops.modelkit.model.v1.tar"
    fake.manifest = json.dumps(manifest).encode()
    attack(lambda fake, request: None, 1, fake)


@pytest.mark.parametrize(("status", "code"), [(403, 4), (404, 3), (418, 5), (451, 5)])
def test_refusals_have_their_codes(attack, status, code):
    """What the registry says of it is shown, without control characters."""
    body = b'{"errors": [{"code": "X", "message": "because \\u001b[31m of this"}]}'
    text = attack(lambda fake, request: Answer(status, {}, body) if "/manifests/" in request.path else None, code)
    assert "\x1b" not in text


def test_failures_that_pass_are_tried_again(node):
    """Two answers of 503 with Retry-After, then the right one."""
    fake, refused = FakeRegistry(), []

    def respond(request):
        if is_layer(fake, request) and len(refused) < 2:
            refused.append(request)
            return Answer(503, {"Retry-After": "0"})
        return fake(request)

    server = Server(respond)
    try:
        node("client").run("pull", f"{server.host}/acme/kit:1", "--plain-http")
    finally:
        server.close()
    assert len(refused) == 2
