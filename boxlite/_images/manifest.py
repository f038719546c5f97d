"""Manifests and indexes: what a registry says that an image is made of.

Source: the OCI image specification 1.1, "Image Manifest" and "Image Index", and
Docker's schema 2, which differs in the names of its types only. What a document is
follows from its bytes alone, never from a header, so that it means the same when it
is read from a store; one that could be either is refused (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from .descriptor import Descriptor
from .document import parse_object, take_list, take_object, take_text
from .media import (
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    check_config_type,
    check_manifest_type,
    layer_compression,
)
from .platform import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What the distribution specification has registries accept, and what they do limit it to.
MANIFEST_BYTES_MAX: Final = 4 << 20
#: overlayfs, and so Docker, can mount 128; what is flattened could be of more.
LAYERS_MAX: Final = 500
ENTRIES_MAX: Final = 1000

_TYPE_MAX: Final = 255
_FIELDS_MAX: Final = 1000
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
_ATTESTATION: Final = "attestation-manifest"


@attrs.frozen(kw_only=True)
class Manifest:
    """One image for one platform.

    Args:
        config: Where its configuration is.
        layers: Its layers, the lowest first.
        descriptor: The manifest itself: its type, the digest of its bytes, their number.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    descriptor: Descriptor

    @property
    def digest(self) -> str:
        """The digest of the manifest's bytes."""
        return self.descriptor.digest

    @property
    def size(self) -> int:
        """The bytes of the configuration and of all layers, as they are downloaded."""
        return sum({piece.digest: piece.size for piece in (self.config, *self.layers)}.values())


@attrs.frozen(kw_only=True)
class Entry:
    """One line of an index.

    Args:
        descriptor: The manifest, or an index of its own.
        platform: The machine that it is for, if the index says so.
    """

    descriptor: Descriptor
    platform: Platform | None


@attrs.frozen(kw_only=True)
class Index:
    """Images for several platforms under one name.

    Args:
        entries: What it lists, without attestations and what else is no image.
        descriptor: The index itself.
    """

    entries: tuple[Entry, ...]
    descriptor: Descriptor

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that it has something for, each once, in its order."""
        return tuple(dict.fromkeys(str(e.platform) for e in self.entries if e.platform))

    def choose(self, platform: Platform) -> Descriptor | None:
        """Return what fits a platform best, or None if nothing does.

        Of several that fit equally it is the first, as the specification asks for. An
        index with a single entry need not say what that is for: its configuration does.
        """
        if len(self.entries) == 1 and self.entries[0].platform is None:
            return self.entries[0].descriptor
        ranked = [
            (rank, entry.descriptor)
            for entry in self.entries
            if entry.platform and (rank := platform.rank(entry.platform)) is not None
        ]
        # max() keeps the first of equals.
        return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def parse_manifest(data: bytes) -> Manifest | Index:
    """Return what a manifest or an index says.

    Takes up to some 100 ms for the largest that is allowed.

    Args:
        data: The document as it was sent: its digest is that of these bytes.

    Raises:
        ValueError: It is not one, or of a kind that is not supported; says why.
    """
    document = parse_object(data, "its manifest", max_bytes=MANIFEST_BYTES_MAX)
    media_type = take_text(document, "mediaType", max_length=_TYPE_MAX)
    if media_type:
        check_manifest_type(media_type)
    version = document.get("schemaVersion")
    if type(version) is int and version == 1:
        check_manifest_type("application/vnd.docker.distribution.manifest.v1+json")
    if type(version) is not int or version != 2:
        raise ValueError("its manifest is not of schema version 2")
    is_index, is_manifest = "manifests" in document, bool({"layers", "config"} & document.keys())
    if is_index == is_manifest:
        raise ValueError("its manifest could be read in two ways, or in none")
    if media_type and media_type not in (INDEXES if is_index else MANIFESTS):
        raise ValueError("its manifest is not what its media type says")
    own = Descriptor(
        media_type=media_type or (OCI_INDEX if is_index else OCI_MANIFEST),
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size=len(data),
    )
    return _index(document, own) if is_index else _manifest(document, own)


def _manifest(document: dict[str, Any], own: Descriptor) -> Manifest:
    config, *layers = _descriptors(
        [document.get("config"), *take_list(document, "layers", max_entries=LAYERS_MAX)]
    )
    check_config_type(config.media_type)
    for layer in layers:
        layer_compression(layer.media_type)
    if not layers:
        raise ValueError("it has no layers")
    sizes = {piece.digest: piece.size for piece in (config, *layers)}
    if any(sizes[piece.digest] != piece.size for piece in (config, *layers)):
        raise ValueError("its manifest has two sizes for the same piece")
    return Manifest(config=config, layers=tuple(layers), descriptor=own)


def _index(document: dict[str, Any], own: Descriptor) -> Index:
    items = take_list(document, "manifests", max_entries=ENTRIES_MAX)
    entries = []
    for item, descriptor in zip(items, _descriptors(items), strict=True):
        platform = take_object(item, "platform", max_entries=_FIELDS_MAX)
        notes = take_object(item, "annotations", max_entries=_FIELDS_MAX)
        os, architecture, variant = (
            take_text(platform, name, max_length=64) for name in ("os", "architecture", "variant")
        )
        # BuildKit lists what it knows about an image as one for this platform.
        if (
            "unknown" in (os, architecture)
            or notes.get("vnd.docker.reference.type") == _ATTESTATION
        ):
            continue
        if descriptor.media_type not in MANIFESTS | INDEXES:
            continue  # An artifact, such as a signature.
        entries.append(
            Entry(
                descriptor=descriptor,
                platform=Platform(os, architecture, variant) if os and architecture else None,
            )
        )
    return Index(entries=tuple(entries), descriptor=own)


def _descriptors(items: Sequence[object]) -> list[Descriptor]:
    found = []
    for item in items:
        if not isinstance(item, dict):
            raise ValueError("its manifest has something that is not a descriptor")
        if item.get("urls"):
            raise ValueError(
                "a piece of it is to be had from elsewhere only, by URLs, which is not done"
            )
        media_type = take_text(item, "mediaType", max_length=_TYPE_MAX)
        found.append(
            Descriptor(media_type=media_type, digest=item.get("digest"), size=item.get("size"))  # type: ignore[arg-type]
        )
    return found
