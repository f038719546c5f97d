"""A registry on loopback for tests: it serves what it is given, and misbehaves as scripted.

Real sockets and a real HTTP server, in threads, so that a client is tested with all
that it is made of. Nothing here sleeps.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import ssl
import subprocess
import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@attrs.frozen(kw_only=True)
class Request:
    """What a client asked for; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> Mapping[str, list[str]]:
        """What was posted."""
        return parse_qs(self.body.decode())


@attrs.frozen
class Reply:
    """What it is answered.

    Args:
        status: The HTTP status.
        body: What is sent.
        headers: With it.
        length: The value of Content-Length. Default: the true one.
        chunks: Sent in the place of the body; each is flushed before the next is made.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    length: int | None = None
    chunks: Iterable[bytes] | None = None


class RegistryServer:
    """What is served, what is scripted, and what was asked for."""

    def __init__(self, host: str, scheme: str) -> None:
        self.host = host
        self.scheme = scheme
        self.requests: list[Request] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.knows_ranges = True
        #: Set when it ends: whatever waits in it goes on.
        self.ended = threading.Event()
        self._script: list[tuple[re.Pattern[str], deque[Reply | Callable[[Request], Reply]]]] = []
        self._always: list[tuple[re.Pattern[str], Callable[[Request], Reply | None]]] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The beginning of its URLs."""
        return f"{self.scheme}://{self.host}"

    def on(self, pattern: str, *replies: Reply | Callable[[Request], Reply]) -> None:
        """Answer the next requests whose path has the pattern, each with one of these."""
        self._script.append((re.compile(pattern), deque(replies)))

    def guard(self, pattern: str, answer: Callable[[Request], Reply | None]) -> None:
        """Ask this first for every path that has the pattern; None lets the request pass."""
        self._always.append((re.compile(pattern), answer))

    def asked(self, pattern: str) -> list[Request]:
        """Return the requests whose path has the pattern, in their order."""
        return [request for request in self.requests if re.search(pattern, request.path)]

    def put_blob(self, data: bytes) -> str:
        """Serve a blob; return its digest."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def put_manifest(self, document: object, *, tag: str | None = None) -> dict[str, Any]:
        """Serve a manifest by its digest and a tag; return its descriptor."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        for key in (digest_of(data), tag):
            if key is not None:
                self.manifests[key] = data
        media_type = document.get("mediaType", "") if isinstance(document, dict) else ""
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def put_image(
        self,
        *layers: bytes,
        tag: str | None = "latest",
        media_type: str = OCI_LAYER,
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Serve an image; return the descriptor of its manifest."""
        document = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            **(config or {}),
        }
        data = json.dumps(document).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._descriptor(data, OCI_CONFIG),
            "layers": [self._descriptor(layer, media_type) for layer in layers],
        }
        return self.put_manifest(manifest, tag=tag)

    def _descriptor(self, data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.put_blob(data), "size": len(data)}

    def answer(self, request: Request) -> Reply:
        """Return what a request is answered: by the guards, the script, or the content."""
        with self._lock:
            self.requests.append(request)
            scripted = next(
                (
                    replies.popleft()
                    for pattern, replies in self._script
                    if replies and pattern.search(request.path)
                ),
                None,
            )
        for pattern, guard in self._always:
            if pattern.search(request.path) and (reply := guard(request)) is not None:
                return reply
        if scripted is not None:
            return scripted if isinstance(scripted, Reply) else scripted(request)
        return self.serve(request)

    def serve(self, request: Request) -> Reply:
        """Return what an honest registry answers."""
        kind, _, key = request.path.rpartition("/")
        if kind.endswith("/manifests") and key in self.manifests:
            data = self.manifests[key]
            return Reply(200, data, {"Docker-Content-Digest": digest_of(data)})
        if kind.endswith("/blobs") and key in self.blobs:
            return self._part(request, self.blobs[key])
        code = "MANIFEST_UNKNOWN" if kind.endswith("/manifests") else "BLOB_UNKNOWN"
        return Reply(404, json.dumps({"errors": [{"code": code, "message": "none"}]}).encode())

    def _part(self, request: Request, data: bytes) -> Reply:
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if match is None or not self.knows_ranges:
            return Reply(200, data)
        start = int(match[1])
        if start >= len(data):
            return Reply(416)
        content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, data[start:], {"Content-Range": content_range})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        reply = self.server.registry.answer(
            Request(
                method=self.command,
                path=url.path,
                query=parse_qs(url.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(length),
            )
        )
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        length = len(reply.body) if reply.length is None else reply.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        chunks = [reply.body] if reply.chunks is None else reply.chunks
        sent = 0
        for chunk in chunks:
            self.wfile.write(chunk)
            self.wfile.flush()
            sent += len(chunk)
        if sent != length:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: RegistryServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go away as they like."""


@contextmanager
def open_registry(
    *, name: str = "127.0.0.1", certificate: Certificate | None = None
) -> Iterator[RegistryServer]:
    """Serve on a free port of 127.0.0.1 until the block ends.

    Args:
        name: What the server is called in its URLs.
        certificate: For TLS. Default: plain HTTP.
    """
    with ExitStack() as stack:
        server = stack.enter_context(_Server(("127.0.0.1", 0), _Handler))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.path, certificate.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        registry = RegistryServer(f"{name}:{server.server_address[1]}", scheme)
        server.registry = registry
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        stack.callback(registry.ended.set)
        yield registry


def demand(registry: RegistryServer, challenge: str, *accepted: str) -> None:
    """Let nobody in who does not send one of the headers."""

    def check(request: Request) -> Reply | None:
        if request.headers.get("authorization") in accepted:
            return None
        return Reply(401, headers={"WWW-Authenticate": challenge})

    registry.guard(r"^/v2/", check)


def bearer(registry: RegistryServer, realm: str) -> str:
    """Return a challenge for a token."""
    return f'Bearer realm="{realm}",service="registry.test"'


def token_service(
    registry: RegistryServer, token: str, allow: Callable[[Request], bool] = lambda _: True
) -> None:
    """Give out a token at ``/token``."""
    registry.guard(
        r"^/token$",
        lambda request: (
            Reply(200, json.dumps({"token": token}).encode())
            if allow(request)
            else Reply(401, b"{}")
        ),
    )


@attrs.frozen
class Certificate:
    """A certificate that signs itself, and its key."""

    path: Path
    key: Path


def make_certificate(directory: Path, *names: str) -> Certificate:
    """Make a certificate for some host names.

    Raises:
        FileNotFoundError: There is no openssl.
    """
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-days", "2", "-nodes", "-subj", "/CN=boxlite test"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)),
            *("-out", str(made.path), "-keyout", str(made.key)),
        ],
        check=True,
        capture_output=True,
    )
    return made


def digest_of(data: bytes) -> str:
    """Return the digest of some content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that are the same for the same seed, and do not repeat."""
    blocks = (size + 31) // 32
    made = b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(blocks))
    return made[:size]


def gzipped(data: bytes) -> bytes:
    """Return content compressed, always the same way."""
    return gzip.compress(data, mtime=0)
