"""An image that was found in a source, and what is the same for all of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from .config import parse_config
from .source_piece import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .config import ImageConfig
    from .descriptor import Descriptor
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
        config_digest: That of its configuration.
        take: Puts it into the store and returns its manifest.
    """

    identity: str
    names: tuple[Reference, ...]
    digests: tuple[str, ...]
    config_digest: str
    take: Callable[[Intake], Descriptor]


def merged(found: Iterable[Found]) -> list[Found]:
    """Return images, each once with all of its names, in the order in which they first come."""
    images: dict[str, Found] = {}
    for each in found:
        known = images.get(each.identity, each)
        images[each.identity] = attrs.evolve(
            known,
            names=tuple(dict.fromkeys((*known.names, *each.names))),
            digests=tuple(dict.fromkeys((*known.digests, *each.digests))),
        )
    return list(images.values())


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
