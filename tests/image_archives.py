"""Sources of images, made by hand: layouts and archives, honest ones and others."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import layers
from layers import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from layers import Compression, Part

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
REF_NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"
LAYOUT: Final = b'{"imageLayoutVersion": "1.0.0"}'


def json_of(value: object) -> bytes:
    """Return a document."""
    return json.dumps(value).encode()


def layer_of(*texts: str) -> bytes:
    """Return the tar of a layer that has a file for each text, called by it."""
    return layers.layer(*(layers.file(text.encode(), text.encode()) for text in texts))


def config_of(*tars: bytes, architecture: str = "amd64", **more: object) -> bytes:
    """Return the configuration of an image."""
    diff_ids = [digest_of(tar) for tar in tars]
    return json_of(
        {
            "architecture": architecture,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            **more,
        }
    )


class Files:
    """The files of a source, by their names in it."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def blob(self, data: bytes, media_type: str, **more: object) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = digest_of(data)
        self.content[blob_path(digest)] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def image(
        self,
        *tars: bytes,
        compression: Compression = "gzip",
        architecture: str = "amd64",
        config: bytes | None = None,
    ) -> dict[str, Any]:
        """Add an image; return the descriptor of its manifest."""
        config = config or config_of(*tars, architecture=architecture)
        kind = LAYER if compression == "none" else f"{LAYER}+{compression}"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(config, CONFIG),
            "layers": [self.blob(layers.compressed(tar, compression), kind) for tar in tars],
        }
        return self.blob(json_of(manifest), MANIFEST)

    def index(self, *entries: dict[str, Any]) -> dict[str, Any]:
        """Add an index that is listed by another one; return its descriptor."""
        return self.blob(json_of({"schemaVersion": 2, "manifests": entries}), INDEX)

    def finish(self, *entries: dict[str, Any]) -> Files:
        """Make an OCI layout of it, which has these images."""
        self.content["oci-layout"] = LAYOUT
        self.content["index.json"] = json_of({"schemaVersion": 2, "manifests": entries})
        return self

    def docker(self, *images: Mapping[str, Any]) -> Files:
        """Make an archive of ``docker save`` of it, which has these images."""
        self.content["manifest.json"] = json_of(images)
        return self

    def write(self, directory: Path) -> Path:
        """Write the files to a directory."""
        for name, data in self.content.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return directory

    def tar(self, *more: Part, prefix: str = "") -> bytes:
        """Return a tar of the files and more members, whose names begin with a prefix."""
        return tar_of(
            *(layers.file(os.fsencode(prefix + name), data) for name, data in self.content.items()),
            *more,
        )


def tar_of(*parts: Part) -> bytes:
    """Return a tar of members."""
    return layers.layer(*parts)


def named(descriptor: dict[str, Any], name: str, key: str = REF_NAME) -> dict[str, Any]:
    """Return a descriptor of an image that has a name."""
    return {**descriptor, "annotations": {key: name}}


def on(descriptor: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return a descriptor of an image for Linux on a processor."""
    return {**descriptor, "platform": {"os": "linux", "architecture": architecture}}


def blob_path(digest: str) -> str:
    """Return where a layout has a blob."""
    return "blobs/" + digest.replace(":", "/")


def saved(
    files: Files, *tars: bytes, tags: Iterable[str] | None, config: bytes | None = None
) -> dict[str, Any]:
    """Add an image as Docker before 25 saved it; return its entry in ``manifest.json``."""
    config = config or config_of(*tars)
    config_name = f"{digest_of(config).partition(':')[2]}.json"
    files.content[config_name] = config
    names = []
    for tar in tars:
        name = f"{digest_of(b'id of' + tar).partition(':')[2]}/layer.tar"
        files.content[name] = tar
        names.append(name)
    return {
        "Config": config_name,
        "RepoTags": None if tags is None else list(tags),
        "Layers": names,
    }
