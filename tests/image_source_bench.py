"""What tests of sources of images work with: a store, and what must be true afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from census import open_files
from image_archives import (
    Files,
    layer_of,
    named,
)
from layers import digest_of

from boxlite._errors import (
    ImageRefusedError,
)
from boxlite._images.blobs import BlobStore
from boxlite._images.config import parse_config
from boxlite._images.manifest import Manifest, parse_manifest
from boxlite._images.reference import Reference
from boxlite._images.sources import Loaded, load_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from boxlite._images.descriptor import Descriptor
    from boxlite._images.layer_limits import Limits
    from boxlite._images.platform import Platform


#: The layers of the images.
ONE, TWO = layer_of("one"), layer_of("two", "three")


class Bench:
    """A store, a directory to work in, and one for sources."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = BlobStore(top / "images")
        self.scratch = top / "scratch"
        self.scratch.mkdir()

    async def load(
        self,
        source: Path | bytes | Files,
        *,
        name: str | None = None,
        platform: Platform | None = None,
        limits: Limits | None = None,
    ) -> list[Loaded]:
        """Load a source; what is no path is written to ``image.tar`` or to ``layout``."""
        if isinstance(source, Files):
            source = source.write(self.top / "layout")
        if isinstance(source, bytes):
            (self.top / "image.tar").write_bytes(source)
            source = self.top / "image.tar"
        return await load_source(
            self.store,
            source,
            scratch=self.scratch,
            name=Reference.parse(name) if name is not None else None,
            platform=platform,
            limits=limits,
        )

    async def load_one(
        self,
        source: Path | bytes | Files,
        *,
        name: str | None = None,
        platform: Platform | None = None,
    ) -> Manifest:
        """Load a source of one image, and return its manifest."""
        [loaded] = await self.load(source, name=name, platform=platform)
        return self.manifest(loaded)

    def manifest(self, loaded: Loaded) -> Manifest:
        """Return the manifest of an image, every piece of which must be in the store."""
        manifest = parse_manifest(self.store.read(loaded.manifest, 1 << 20))
        assert isinstance(manifest, Manifest)
        assert manifest.descriptor == loaded.manifest
        for piece in (manifest.config, *manifest.layers):
            assert digest_of(self.read(piece)) == piece.digest
        return manifest

    def read(self, piece: Descriptor) -> bytes:
        """Return a piece."""
        return self.store.read(piece, 1 << 30)

    def diff_ids(self, manifest: Manifest) -> list[str]:
        """Return what the configuration says of the layers."""
        return list(parse_config(self.read(manifest.config)).diff_ids)

    async def refused(
        self,
        source: Path | bytes | Files,
        match: str,
        *,
        name: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Load a source that must be refused, by its name."""
        with pytest.raises(ImageRefusedError, match=match) as caught:
            await self.load(source, name=name, limits=limits)
        assert caught.value.image.startswith(str(self.top))


@contextmanager
def open_bench(top: Path) -> Iterator[Bench]:
    """Give a bench in a directory; afterwards nothing is open, in scratch, or half in the store."""
    before = open_files()
    bench = Bench(top)
    yield bench
    assert open_files() == before
    assert [*bench.scratch.iterdir()] == []
    if bench.store.partials.exists():
        assert [*bench.store.partials.iterdir()] == []
    for digest in bench.store.digests():
        assert digest_of(bench.store.path(digest).read_bytes()) == digest


def one_image(name: str = "latest") -> Files:
    """Return a layout of one image."""
    files = Files()
    return files.finish(named(files.image(ONE, TWO), name))
