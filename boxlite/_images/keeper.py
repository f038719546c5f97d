"""What a home has of images: which there are, what they need, and what nothing needs.

Everything here blocks, for some files each; what changes something is called by one
task at a time.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from boxlite._errors import ImageNotFoundError, ImageRefusedError, InvalidOptionError

from .blobs import BlobStore
from .catalog import Catalog
from .config import CONFIG_BYTES_MAX, parse_config
from .descriptor import is_digest
from .image import Image
from .manifest import MANIFEST_BYTES_MAX, Manifest, parse_manifest
from .reference import Reference
from .roots import Roots, root_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from boxlite._layout import HomeLayout

    from .catalog import Entry
    from .config import ImageConfig

#: As many digits of a digest are taken for it, and shown of it.
_DIGITS: Final = 12
_SHORT_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


class Keeper:
    """The images of a home.

    Attributes:
        blobs: What they are made of.
        catalog: What they are called.
        roots: What boxes mount.

    Args:
        home: The home.
    """

    def __init__(self, home: HomeLayout) -> None:
        self.blobs = BlobStore(home.images)
        self.catalog = Catalog(home.images / "names")
        self.roots = Roots(home.roots, home.tmp)

    def find(self, name: str) -> Entry:
        """Return what a reference, or a digest or its beginning, leads to.

        Raises:
            InvalidOptionError: It is neither.
            ImageNotFoundError: There is none.
        """
        if digest := _SHORT_DIGEST.fullmatch(name):
            wanted = f"sha256:{digest[1]}"
            for entry in self.catalog.entries():
                if entry.manifest.digest.startswith(wanted):
                    return entry
        found = None if name.startswith("sha256:") else self.catalog.get(_canonical(name))
        if found is None:
            raise ImageNotFoundError(shown_name(name), "this home has none of that name")
        return found

    def documents(self, entry: Entry) -> tuple[Manifest, ImageConfig]:
        """Return the manifest and the configuration of an image.

        Raises:
            ImageNotFoundError: One of them is missing.
            ImageRefusedError: One of them is none.
        """
        name = shown_name(entry.name)
        try:
            manifest = parse_manifest(self.blobs.read(entry.manifest, MANIFEST_BYTES_MAX))
            if not isinstance(manifest, Manifest):
                raise ImageRefusedError(name, "its manifest is an index")
            data = self.blobs.read(manifest.config, CONFIG_BYTES_MAX)
            return manifest, parse_config(data, layers=len(manifest.layers))
        except FileNotFoundError as exc:
            fix = "Pull it again."
            raise ImageNotFoundError(name, "a part of it is missing", fix=fix) from exc
        except ValueError as exc:
            raise ImageRefusedError(name, str(exc)) from exc

    def image(self, entry: Entry) -> Image:
        """Return an image that is ready.

        Raises:
            ImageNotFoundError: Something of it is missing.
            ImageRefusedError: Something of it is broken.
        """
        manifest, config = self.documents(entry)
        root = root_name(config.diff_ids)
        size = self.roots.size(root)
        if size is None:
            problem = "its root file system is missing"
            raise ImageNotFoundError(shown_name(entry.name), problem, fix="Pull it again.")
        return Image(
            name=shown_name(entry.name),
            digest=manifest.digest,
            config=config,
            layers_bytes=sum(layer.size for layer in manifest.layers),
            root=self.roots.path(root),
            root_bytes=size,
            added_at=entry.added_at,
        )

    def images(self) -> list[Image]:
        """Return the images that are ready, by their names."""
        found = []
        for entry in self.catalog.entries():
            with suppress(ImageNotFoundError, ImageRefusedError):
                found.append(self.image(entry))
        return sorted(found, key=lambda image: image.name)

    def is_needed(self, entry: Entry, roots_in_use: Collection[str]) -> bool:
        """Tell whether a box uses an image that has no other name.

        Args:
            entry: The image.
            roots_in_use: The roots that boxes use.
        """
        try:
            _, config = self.documents(entry)
        except (ImageNotFoundError, ImageRefusedError):
            return False
        return root_name(config.diff_ids) in roots_in_use and not any(
            other.manifest.digest == entry.manifest.digest and other.name != entry.name
            for other in self.catalog.entries()
        )

    def collect(self, roots_in_use: Collection[str]) -> int:
        """Remove what no name leads to, and no box uses; return the bytes that this freed.

        Args:
            roots_in_use: The roots that boxes use.

        Raises:
            OSError: Something cannot be removed.
        """
        blobs: set[str] = set()
        roots = set(roots_in_use)
        self.catalog.sweep()
        for entry in self.catalog.entries():
            blobs.add(entry.manifest.digest)
            # One that is broken has to be pulled again, whatever else there is of it.
            with suppress(ImageNotFoundError, ImageRefusedError):
                manifest, config = self.documents(entry)
                blobs |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
                roots.add(root_name(config.diff_ids))
        freed = self.blobs.sweep()
        freed += sum(self.blobs.remove(each) for each in {*self.blobs.digests()} - blobs)
        return freed + sum(self.roots.remove(each) for each in {*self.roots.names()} - roots)


def _canonical(name: str) -> str:
    return str(Reference.parse(name))


def shown_name(name: str) -> str:
    """Return a name as people read it."""
    if is_digest(name):
        return name.partition(":")[2][:_DIGITS]
    try:
        return Reference.parse(name).familiar
    except InvalidOptionError:
        return name[:200]
