"""Images in OCI layouts, made and changed by the tools that people use: umoci and skopeo."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: More than any of the tools needs on a busy machine.
TOOL_SECONDS: Final = 600.0
_CREATED: Final = "2025-01-01T00:00:00Z"
#: What :mod:`image_builder` and :mod:`image_registry` need, each by its Debian package's name.
_TOOLS: Final = (
    *("umoci", "skopeo", "docker-registry", "mmdebstrap", "fakechroot", "fakeroot"),
    *("dpkg", "busybox"),
)
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"


def missing_tools() -> list[str]:
    """Return those of the needed programs that are not installed."""
    return [tool for tool in _TOOLS if shutil.which(tool) is None]


class ToolError(Exception):
    """A tool failed; the text is what it said."""


def run_tool(*argv: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a tool to its end.

    Args:
        *argv: The program and its arguments.
        environment: What is added to this process's environment.

    Returns:
        Its standard output.

    Raises:
        ToolError: It failed, or took longer than :data:`TOOL_SECONDS` and was killed.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TOOL_SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{argv[0]} took more than {TOOL_SECONDS:g} s: {argv}") from error
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise ToolError(f"{argv} failed with {done.returncode}:\n{said}")
    return done.stdout


def skopeo(*arguments: str | Path) -> str:
    """Run skopeo, whatever this machine's policy for signatures and its logins are."""
    # An empty file would be refused; one that is not there is a user without logins.
    environment = {"REGISTRY_AUTH_FILE": "/nonexistent/auth.json"}
    return run_tool("skopeo", "--insecure-policy", *arguments, environment=environment)


@attrs.frozen
class Layout:
    """An image in a directory, an OCI image layout that has it alone.

    Args:
        directory: The layout.
        tag: What the image is called in it.
    """

    directory: Path
    tag: str = "latest"

    @classmethod
    def create(cls, directory: Path, tag: str = "latest") -> Layout:
        """Make a layout with an image that has no layers."""
        layout = cls(directory, tag)
        run_tool("umoci", "init", "--layout", directory)
        run_tool("umoci", "new", "--image", layout.umoci)
        layout.configure(os="linux", architecture="amd64")
        return layout

    @property
    def umoci(self) -> str:
        """What umoci calls it."""
        return f"{self.directory}:{self.tag}"

    @property
    def location(self) -> str:
        """What skopeo calls it."""
        return f"oci:{self.directory}:{self.tag}"

    def add_layer(self, tar: Path) -> None:
        """Put a layer on top of the image.

        Args:
            tar: The layer, not compressed. umoci compresses it with gzip.
        """
        history = ["--history.created", _CREATED, "--history.created_by", tar.name]
        run_tool("umoci", "raw", "add-layer", *history, "--image", self.umoci, tar)

    def configure(
        self,
        *,
        env: Sequence[str] = (),
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        **fields: str,
    ) -> None:
        """Change the image's configuration.

        Args:
            env: Variables, as ``NAME=value``, beside those that are there.
            entrypoint: The entrypoint. One that is empty stays as it was.
            cmd: The arguments, likewise.
            labels: Labels, beside those that are there.
            **fields: ``user``, ``workingdir``, ``os``, ``architecture``, ``stopsignal``.
        """
        top = ("os", "architecture")
        flags = ["--created", _CREATED, "--history.created", _CREATED]
        for name, value in fields.items():
            flags += [f"--{name}" if name in top else f"--config.{name}", value]
        for name, values in (
            ("env", env),
            ("entrypoint", entrypoint),
            ("cmd", cmd),
            ("label", [f"{label}={value}" for label, value in (labels or {}).items()]),
        ):
            for value in values:
                flags += [f"--config.{name}", value]
        run_tool("umoci", "config", *flags, "--image", self.umoci)

    def derive(self, directory: Path, tag: str = "latest") -> Layout:
        """Return a copy of the image in a directory that is made, to be changed."""
        shutil.copytree(self.directory, directory)
        if tag != self.tag:
            run_tool("umoci", "tag", "--image", f"{directory}:{self.tag}", tag)
            run_tool("umoci", "rm", "--image", f"{directory}:{self.tag}")
        return Layout(directory, tag)

    def copy(self, location: str, *options: str) -> None:
        """Copy the image with skopeo.

        Args:
            location: Where to, as skopeo has it: ``oci-archive:FILE``, ``docker://...``.
            *options: Options of ``skopeo copy``.
        """
        skopeo("copy", "--quiet", *options, self.location, location)

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.directory.joinpath("blobs", *digest.split(":"))

    def descriptor(self) -> dict[str, Any]:
        """Return what the layout's index says of the image."""
        name = "org.opencontainers.image.ref.name"
        index = json.loads((self.directory / "index.json").read_text())
        [found] = [
            entry
            for entry in index["manifests"]
            if entry.get("annotations", {}).get(name) == self.tag
        ]
        return dict(found)

    def digest(self) -> str:
        """Return the digest of the image's manifest, or of its index."""
        return str(self.descriptor()["digest"])

    def manifest(self) -> dict[str, Any]:
        """Return the image's manifest, or its index."""
        return dict(json.loads(self.blob(self.digest()).read_bytes()))

    def config(self) -> dict[str, Any]:
        """Return the image's configuration. The image is not an index."""
        digest = self.manifest()["config"]["digest"]
        return dict(json.loads(self.blob(digest).read_bytes()))

    def unpack(self, directory: Path) -> Path:
        """Unpack the image with umoci, the reference to compare other unpackers with.

        Owners and devices are there if root does it.

        Returns:
            The directory that is the image's root, below the one given, which is made.
        """
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        run_tool("umoci", "unpack", *rootless, "--image", self.umoci, directory)
        return directory / "rootfs"


def write_index(directory: Path, tag: str, images: Mapping[str, Layout]) -> Layout:
    """Make an image of several platforms.

    Args:
        directory: The layout to make.
        tag: What the image is called in it.
        images: Images, by platform: ``linux/amd64``, ``linux/arm/v7``.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entries: list[dict[str, Any]] = []
    for name, image in images.items():
        for blob in (image.directory / "blobs" / "sha256").iterdir():
            shutil.copyfile(blob, blobs / blob.name)
        entry = image.descriptor()
        entry.pop("annotations", None)
        parts = name.split("/")
        entry["platform"] = dict(zip(("os", "architecture", "variant"), parts, strict=False))
        entries.append(entry)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    data = json.dumps(index, indent=2).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    top = {
        "mediaType": OCI_INDEX,
        "digest": f"sha256:{digest}",
        "size": len(data),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    whole = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [top]}
    (directory / "index.json").write_text(json.dumps(whole))
    return Layout(directory, tag)
