"""An image that was found in a source, and what is the same for all of them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from .config import CONFIG_BYTES_MAX, parse_config
from .descriptor import Descriptor
from .manifest import Manifest, parse_manifest
from .media import OCI_CONFIG, OCI_MANIFEST
from .source_piece import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .config import ImageConfig
    from .platform import Platform
    from .reference import Reference
    from .source_piece import Files, Intake

T = TypeVar("T")

#: Of all manifests, indexes and configurations of a source: a thousand images have 10 MB.
_DOCUMENT_BYTES_MAX: Final = 64 << 20


@attrs.frozen(kw_only=True)
class Found:
    """An image in a source, of which only the documents were read.

    Args:
        identity: Equal to that of another one if they are the same image.
        names: What it is called there.
        digests: Those by which it may be called: of its manifest, and of the indexes that
            led to it. None is known for an image whose manifest is to be made.
        take: Puts it into the store and returns its manifest.
    """

    identity: str
    names: tuple[Reference, ...]
    digests: tuple[str, ...]
    take: Callable[[Intake], Descriptor]


class Documents:
    """Reads the documents of a source, which may be large, but not all of them.

    Args:
        files: The files of the source.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._left = _DOCUMENT_BYTES_MAX

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file.

        Args:
            name: The file.
            limit: The most bytes that it may have.

        Raises:
            SourceError: It is missing, no file, or too large.
            UnreadableError: It cannot be read.
        """
        with self.files.open(name) as piece:
            self._left -= piece.size
            if self._left < 0:
                raise SourceError(
                    f"its manifests and configurations have more than {_DOCUMENT_BYTES_MAX} bytes"
                )
            return piece.read(limit, name[:100])

    def read_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return the content of a blob of an OCI layout.

        Raises:
            SourceError: It is missing, no file, too large, or not what it should be.
            UnreadableError: It cannot be read.
        """
        data = self.read(blob_name(descriptor), limit)
        if len(data) != descriptor.size:
            raise SourceError(
                f"{descriptor.digest} has {len(data)} bytes, and {descriptor.size} were promised"
            )
        if digest_of(data) != descriptor.digest:
            raise SourceError(f"the content of {descriptor.digest} is {digest_of(data)}")
        return data


def blob_name(descriptor: Descriptor) -> str:
    """Return the name of a blob's file in an OCI layout."""
    return f"blobs/sha256/{descriptor.hex}"


def digest_of(data: bytes) -> str:
    """Return the digest of a small document."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def understood(parse: Callable[[], T]) -> T:
    """Return what a parser returns.

    Raises:
        SourceError: It raised a ValueError, which says what is wrong.
    """
    try:
        return parse()
    except ValueError as exc:
        raise SourceError(str(exc)) from exc


def config_for(
    data: bytes, layers: int, platform: Platform, there: list[str]
) -> ImageConfig | None:
    """Return what an image's configuration says, or None if it is for another platform.

    Args:
        data: The configuration.
        layers: How many layers the image has.
        platform: The platform.
        there: Gets the platform that it is for, if it is another one.

    Raises:
        SourceError: It is none, or does not fit.
    """
    config = understood(lambda: parse_config(data, layers=layers))
    if config.platform is None or platform.rank(config.platform) is not None:
        return config
    there.append(str(config.platform))
    return None


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


def shown_platforms(there: Sequence[str]) -> str:
    """Return platforms as an error lists them."""
    known = list(dict.fromkeys(there))
    return ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")


def not_for(source: Path, platform: Platform, there: Sequence[str]) -> str:
    """Return why no image of a source is taken for a platform."""
    del source
    return f"there is none for {platform}: there is {shown_platforms(there) or 'none for any'}"
