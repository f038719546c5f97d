"""A registry of this machine for tests: Debian's docker-registry on a loopback port.

It is the reference implementation (distribution 2.8), so what works with it works with
most. It lives as long as a block, and no longer than the thread that started it.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
from image_layout import ToolError, skopeo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from image_layout import Layout

#: Who may use a registry that is opened with ``login=True``.
USERNAME: Final = "tester"
PASSWORD: Final = "the password of the tests"
#: bcrypt of the password, the only scheme that the registry takes (its "htpasswd" chapter).
_HTPASSWD: Final = f"{USERNAME}:$2b$04$jFlM2EC0/f9b7RjiGkaxiumHdr88N97bcP.f7VjNcyDJxDL76g0PO\n"
_READY_SECONDS: Final = 30.0
_REQUEST_SECONDS: Final = 10.0
_END_SECONDS: Final = 10.0
_PORTS: Final = 5
#: The answer that tells our registry from a stranger that has taken the port.
_TOKEN_HEADER: Final = "X-Boxlite-Test"
_MANIFEST_TYPES: Final = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@attrs.frozen(kw_only=True)
class Registry:
    """A registry that runs.

    Args:
        host: ``127.0.0.1:PORT``, the front of the references of its images. Plain HTTP.
        directory: Where it keeps everything.
        log: What it says, each request included.
        login: Whether it wants :data:`USERNAME` and :data:`PASSWORD`.
    """

    host: str
    directory: Path
    log: Path
    login: bool

    def reference(self, name: str) -> str:
        """Return what an image of this registry is called in full: ``test/busybox:latest``."""
        return f"{self.host}/{name}"

    def push(
        self, image: Layout, name: str, *, schema2: bool = False, platforms: bool = False
    ) -> str:
        """Push an image with skopeo.

        Args:
            image: The image.
            name: The repository and the tag: ``test/busybox:latest``.
            schema2: Convert it to Docker's manifest, version 2 schema 2.
            platforms: The image is an index: push all of it, not this machine's part.

        Returns:
            Its reference, with the registry.
        """
        options = ["--dest-tls-verify=false"]
        if self.login:
            options.append(f"--dest-creds={USERNAME}:{PASSWORD}")
        if schema2:
            options.append("--format=v2s2")
        if platforms:
            options.append("--all")
        image.copy(f"docker://{self.reference(name)}", *options)
        return self.reference(name)

    def inspect(self, name: str, *options: str) -> dict[str, Any]:
        """Return what ``skopeo inspect`` says of an image."""
        if self.login:
            options = (*options, f"--creds={USERNAME}:{PASSWORD}")
        said = skopeo("inspect", "--tls-verify=false", *options, f"docker://{self.reference(name)}")
        return dict(json.loads(said))

    def manifest(self, name: str) -> tuple[str, str, bytes]:
        """Return the media type, the digest and the bytes of what a tag points to."""
        repository, _, tag = name.rpartition(":")
        path = f"/v2/{repository}/manifests/{tag}"
        status, headers, body = self.request("GET", path, headers={"Accept": _MANIFEST_TYPES})
        assert status == 200, (status, body)
        return headers["content-type"], headers["docker-content-digest"], body

    def put_manifest(self, name: str, media_type: str, body: bytes) -> str:
        """Put a manifest as it is, whose blobs the repository has, and return its digest.

        Args:
            name: The repository and the tag.
            media_type: What the manifest is.
            body: The manifest.
        """
        repository, _, tag = name.rpartition(":")
        path = f"/v2/{repository}/manifests/{tag}"
        headers = {"Content-Type": media_type}
        status, answered, said = self.request("PUT", path, headers=headers, body=body)
        assert status == 201, (status, said)
        return answered["docker-content-digest"]

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request and return its status, its headers in lower case, and its body."""
        sent = dict(headers or {})
        if self.login:
            pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
            sent["Authorization"] = f"Basic {pair}"
        connection = http.client.HTTPConnection(self.host, timeout=_REQUEST_SECONDS)
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def requests(self) -> list[tuple[str, str]]:
        """Return the method and the path of each request so far, from the log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            # The access log has the form of Apache's: ... "GET /v2/ HTTP/1.1" ...
            quoted = line.split('"')
            if line.startswith("127.0.0.1 - ") and len(quoted) > 1:
                method, path, _ = quoted[1].split(" ", 2)
                found.append((method, path))
        return found


@contextmanager
def open_registry(directory: Path, *, login: bool = False) -> Iterator[Registry]:
    """Run a registry for as long as the block lasts.

    Args:
        directory: Where it keeps images, its configuration and its log; made.
        login: Whether it wants :data:`USERNAME` and :data:`PASSWORD` for everything.

    Raises:
        ToolError: It did not become ready. The text ends with its log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for _ in range(_PORTS):
            registry, process = stack.enter_context(_started(directory, login=login))
            if _is_ready(registry, process):
                break
        else:
            tail = registry.log.read_text(errors="replace")[-4000:]
            raise ToolError(f"no registry on any of {_PORTS} ports; the last one said:\n{tail}")
        yield registry


@contextmanager
def _started(directory: Path, *, login: bool) -> Iterator[tuple[Registry, subprocess.Popen[bytes]]]:
    """Run a registry on a port that was free a moment ago, and end it after the block."""
    # The registry does not say which port it has got when it is told any.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    registry = Registry(host=host, directory=directory, log=directory / "registry.log", login=login)
    config = directory / "config.yml"
    config.write_text(json.dumps(_config(registry)))
    with registry.log.open("ab") as log:
        process = subprocess.Popen(
            # Tests that are killed take their registry with them.
            ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield registry, process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _config(registry: Registry) -> dict[str, Any]:
    """Return the registry's configuration, JSON being YAML ("Configuring a registry")."""
    token = secrets.token_hex(16)
    (registry.directory / "token").write_text(token)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(registry.directory / "storage")},
            "delete": {"enabled": True},
        },
        "http": {
            "addr": registry.host,
            "secret": token,
            "headers": {_TOKEN_HEADER: [token]},
        },
    }
    if registry.login:
        passwords = registry.directory / "htpasswd"
        passwords.write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "boxlite tests", "path": str(passwords)}}
    return config


def _is_ready(registry: Registry, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the registry answers; tell if it ended, or another one answers."""
    token = (registry.directory / "token").read_text()
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            status, headers, _ = registry.request("GET", "/v2/")
        except ConnectionRefusedError:
            time.sleep(0.01)
        except (OSError, http.client.HTTPException):
            # A stranger has the port; ours is about to say so and end.
            return False
        else:
            return status == 200 and headers.get(_TOKEN_HEADER.lower()) == token
    return False
