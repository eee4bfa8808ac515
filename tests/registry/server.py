"""Small HTTP servers that record what they are sent and answer as a test wants."""

import hashlib
import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class Request:
    """What was asked, with all headers.

    Attributes:
        method: Such as GET.
        path: With its query.
        headers: By lower-case name.
        body: What was sent.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What is answered; without ``length`` the connection's end is the body's."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    endless: bool = False


Responder = Callable[[Request], Answer]


class Server:
    """A server on loopback.

    Attributes:
        host: Its host and port.
        requests: All that it was asked.
        respond: What it answers.
    """

    def __init__(self, respond: Responder) -> None:
        self.requests: list[Request] = []
        self.respond = respond
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                size = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(size))
                outer.requests.append(request)
                outer.send(self, outer.respond(request))

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @staticmethod
    def send(handler: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
        """Send an answer as it is, however wrong."""
        handler.send_response(answer.status)
        length = len(answer.body) if answer.length is None else answer.length
        if not answer.endless:
            handler.send_header("Content-Length", str(length))
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            if handler.command != "HEAD":
                handler.wfile.write(answer.body)
            while answer.endless:
                handler.wfile.write(bytes(64 << 10))
        except OSError:
            pass
        if answer.endless or length != len(answer.body):
            handler.close_connection = True

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def describe(raw: bytes, media_type: str) -> dict[str, object]:
    """A descriptor."""
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}", "size": len(raw)}


class FakeRegistry:
    """Answers as a registry that has one ModelKit, ``acme/kit:1``, whose model is one raw file.

    Attributes:
        blobs: By digest.
        manifest: The manifest's bytes.
        layer: The layer's digest.
    """

    def __init__(self, data: bytes = bytes(range(256)) * 40) -> None:
        layer = describe(data, "application/vnd.kitops.modelkit.model.v1.raw")
        layer["annotations"] = {"org.cncf.model.filepath": "model.bin"}
        kitfile = {"manifestVersion": "1.0.0", "package": {"name": "t"}, "model": {"name": "m", "path": "model.bin"}}
        config = json.dumps(kitfile).encode()
        self.blobs = {str(layer["digest"]): data}
        described = describe(config, "application/vnd.kitops.modelkit.config.v1+json")
        self.blobs[str(described["digest"])] = config
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [layer]}
        self.manifest = json.dumps(manifest).encode()
        self.layer = str(layer["digest"])

    def __call__(self, request: Request) -> Answer:
        """The answer to a request."""
        if request.path.startswith("/v2/acme/kit/manifests/"):
            return Answer(headers={"Content-Type": MANIFEST}, body=self.manifest)
        if request.path.startswith("/v2/acme/kit/blobs/"):
            data = self.blobs.get(request.path.partition("?")[0].rpartition("/")[2])
            if data is not None:
                return Answer(body=data)
        if request.path == "/v2/":
            return Answer(body=b"{}")
        return Answer(404, body=b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "no such thing"}]}')
