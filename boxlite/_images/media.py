"""The media types of an image's pieces: which are taken, and why others are not.

Sources: the OCI image specification 1.1 ("Media Types") and Docker's "Image
Manifest Version 2, Schema 2".
"""

from __future__ import annotations

from typing import Final, Literal

Compression = Literal["none", "gzip", "zstd"]

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

#: What a registry is told that it may answer with.
ACCEPTED: Final = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))

_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"
_LAYERS: Final[dict[str, Compression]] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


def layer_compression(media_type: str) -> Compression:
    """Return how a layer is compressed.

    Raises:
        ValueError: Layers of this type are not taken; says why.
    """
    if media_type in _LAYERS:
        return _LAYERS[media_type]
    shown = repr(media_type[:100])
    if media_type.endswith("+encrypted"):
        raise ValueError(f"it has an encrypted layer ({shown}), and there are no keys")
    if "nondistributable" in media_type or ".foreign." in media_type:
        raise ValueError(f"it has a layer that its registry may not hand out ({shown})")
    raise ValueError(f"it has a layer of an unknown type, {shown}")


def check_manifest_type(media_type: str) -> None:
    """Check what a document says that it is.

    Raises:
        ValueError: It is neither a manifest nor an index that is taken; says why.
    """
    if media_type in MANIFESTS or media_type in INDEXES:
        return
    if media_type.startswith(_SCHEMA_1):
        raise ValueError(
            "its manifest is of Docker's schema 1, which is obsolete: push it again with a newer"
            " tool"
        )
    raise ValueError(f"its manifest is of an unknown type, {media_type[:100]!r}")


def check_config_type(media_type: str) -> None:
    """Check the type of a configuration.

    Raises:
        ValueError: It is not that of a container image.
    """
    if media_type not in CONFIGS:
        raise ValueError(
            f"it is not a container image: its configuration is of the type {media_type[:100]!r}"
        )
