"""The manifest of an image that had none: of a ``docker save`` archive, of a root file system.

It says nothing but what it is made of, so the same pieces always give the same digest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from .config import CONFIG_BYTES_MAX
from .descriptor import Descriptor
from .layer_import import LAYER_TYPE
from .manifest import Manifest, parse_manifest
from .media import OCI_CONFIG, OCI_MANIFEST
from .source_found import digest_of, understood
from .source_piece import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .media import Compression
    from .source_piece import Intake

#: The types of layers by how they are compressed.
LAYER_TYPES: Final[dict[Compression, str]] = {
    "none": LAYER_TYPE,
    "gzip": f"{LAYER_TYPE}+gzip",
    "zstd": f"{LAYER_TYPE}+zstd",
}


def store_made(intake: Intake, config: bytes, layers: Sequence[Descriptor]) -> Descriptor:
    """Store an image whose manifest is made of its pieces, and return that.

    The same pieces always give the same manifest.

    Args:
        intake: Where to put them.
        config: The configuration.
        layers: The layers, which the store has.

    Raises:
        SourceError: It is no image that is taken.
        OSError: It cannot be kept.
    """
    if len(config) > CONFIG_BYTES_MAX:
        raise SourceError(f"its configuration has more than {CONFIG_BYTES_MAX} bytes")
    described = Descriptor(media_type=OCI_CONFIG, digest=digest_of(config), size=len(config))
    data = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _encode(described),
            "layers": [_encode(layer) for layer in layers],
        }
    )
    manifest = understood(lambda: parse_manifest(data))
    assert isinstance(manifest, Manifest)
    intake.store.add(config)
    intake.store.add(data)
    return manifest.descriptor


def canonical_json(value: dict[str, Any]) -> bytes:
    """Return the one text that is written of a value: by key, without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _encode(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
