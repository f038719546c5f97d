"""The pieces of one image, in their order: manifest, configuration, layers.

Each says what the next ones are, and is verified and checked before they are asked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import attrs
import trio

from boxlite._errors import ImageNotFoundError, ImageRefusedError
from boxlite._scopes import open_nursery_unwrapped

from .config import CONFIG_BYTES_MAX, parse_config
from .descriptor import Descriptor, is_digest
from .download import fetch_blob
from .manifest import MANIFEST_BYTES_MAX, Index, parse_manifest
from .media import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from .blobs import BlobStore
    from .config import ImageConfig
    from .conversation import Conversation
    from .manifest import Manifest
    from .platform import Platform
    from .progress import PieceKind, Reporter
    from .reference import Reference
    from .transport import Transport

#: An index may list indexes, and those others.
_INDEX_DEPTH_MAX: Final = 3


@attrs.frozen(kw_only=True)
class Pulled:
    """An image whose every piece is in the store.

    Args:
        reference: What was asked for.
        manifest_descriptor: The manifest of the platform that was chosen.
        manifest: What that says.
        config: How its author wants it run.
    """

    reference: Reference
    manifest_descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig


@attrs.frozen
class Pull:
    """One image on its way from a registry into the store.

    Args:
        store: Where it is put.
        transport: What reads answers.
        conversation: Where its pieces are asked for.
        limiter: How many of them come at the same time.
        reference: The image.
        reporter: Who is told.
    """

    store: BlobStore
    transport: Transport
    conversation: Conversation
    limiter: trio.CapacityLimiter
    reference: Reference
    reporter: Reporter

    @property
    def image(self) -> str:
        """The image, as a person would name it."""
        return self.reference.familiar

    async def run(self, platform: Platform, max_bytes: int) -> Pulled:
        """Get everything that is not in the store.

        Args:
            platform: The machine that it is for.
            max_bytes: The most that there may be to download.

        Raises:
            ImageError: It cannot be had, or is not taken; of the class that says why.
            OSError: It cannot be kept.
        """
        manifest = await self._manifest(platform)
        if manifest.size > max_bytes:
            raise ImageRefusedError(
                self.image,
                f"it has {manifest.size} bytes to download, and {max_bytes} are allowed",
            )
        config = await self._config(manifest)
        if config.platform is not None and platform.rank(config.platform) is None:
            raise _no_platform(self.image, platform, (str(config.platform),))
        async with open_nursery_unwrapped() as nursery:
            for layer in {layer.digest: layer for layer in manifest.layers}.values():
                nursery.start_soon(self._layer, layer)
        return Pulled(
            reference=self.reference,
            manifest_descriptor=manifest.descriptor,
            manifest=manifest,
            config=config,
        )

    async def _manifest(self, platform: Platform) -> Manifest:
        key, size = self.reference.manifest_key, None
        for _ in range(_INDEX_DEPTH_MAX + 1):
            data = await self._document(key, size)
            try:
                parsed = await trio.to_thread.run_sync(parse_manifest, data)
            except ValueError as exc:
                raise ImageRefusedError(self.image, str(exc)) from exc
            if not isinstance(parsed, Index):
                return parsed
            chosen = parsed.choose(platform)
            if chosen is None:
                raise _no_platform(self.image, platform, parsed.platforms)
            key, size = chosen.digest, chosen.size
        raise ImageRefusedError(
            self.image, f"its indexes lead to others more than {_INDEX_DEPTH_MAX} times"
        )

    async def _document(self, key: str, size: int | None) -> bytes:
        """Return a manifest or an index, from the store or the registry; it is in the store then.

        Args:
            key: Its tag or its digest.
            size: How many bytes it should have, if that is known.
        """
        if is_digest(key):
            data = await trio.to_thread.run_sync(self._stored, key)
            if data is not None:
                self.reporter.tell("manifest", key, "cached", len(data), len(data))
                return data
        data = await self.conversation.fetch(
            f"manifests/{key}",
            lambda response: self._take(response, key),
            headers=lambda: {"Accept": ACCEPTED},
        )
        if size is not None and len(data) != size:
            raise ImageRefusedError(
                self.image, f"its manifest has {len(data)} bytes, and its index says {size}"
            )
        digest = await trio.to_thread.run_sync(self.store.add, data)
        self.reporter.tell("manifest", digest, "verified", len(data), len(data))
        return data

    async def _take(self, response: httpx.Response, key: str) -> bytes:
        """Return the document that was asked for by its tag or its digest."""
        data = await self.transport.read(response, MANIFEST_BYTES_MAX)
        if data is None:
            raise ImageRefusedError(
                self.image, f"its manifest has more than {MANIFEST_BYTES_MAX} bytes"
            )
        digest = _digest_of(data)
        # A registry that says another digest did not mean these bytes. It may have
        # another algorithm for a manifest that is asked for by its tag.
        said = response.headers.get("Docker-Content-Digest", digest)
        wanted = key if is_digest(key) else digest
        if digest != wanted or (is_digest(said) and said != digest):
            raise ImageRefusedError(
                self.image,
                f"its manifest has the digest {digest}, and"
                f" {wanted if digest != wanted else said} was promised",
            )
        return data

    def _stored(self, digest: str) -> bytes | None:
        path = self.store.path(digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        if size > MANIFEST_BYTES_MAX:
            return None  # It is no manifest, and what it is the registry knows.
        data = self.store.read(
            Descriptor(media_type="", digest=digest, size=size), MANIFEST_BYTES_MAX
        )
        # Its size is not known from elsewhere, so that cannot vouch for it.
        return data if _digest_of(data) == digest else None

    async def _config(self, manifest: Manifest) -> ImageConfig:
        if manifest.config.size > CONFIG_BYTES_MAX:
            raise ImageRefusedError(
                self.image, f"its configuration has more than {CONFIG_BYTES_MAX} bytes"
            )
        await self._blob(manifest.config, "config")
        data = await trio.to_thread.run_sync(self.store.read, manifest.config, CONFIG_BYTES_MAX)
        try:
            return await trio.to_thread.run_sync(
                lambda: parse_config(data, layers=len(manifest.layers))
            )
        except ValueError as exc:
            raise ImageRefusedError(self.image, str(exc)) from exc

    async def _layer(self, layer: Descriptor) -> None:
        await self._blob(layer, "layer")

    async def _blob(self, descriptor: Descriptor, kind: PieceKind) -> None:
        await fetch_blob(
            self.conversation,
            self.transport,
            self.store,
            descriptor,
            kind=kind,
            reporter=self.reporter,
            limiter=self.limiter,
        )


def _digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _no_platform(image: str, wanted: Platform, there: Sequence[str]) -> ImageNotFoundError:
    shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    return ImageNotFoundError(
        image, f"there is none for {wanted}: there is {shown or 'none for any platform'}"
    )
