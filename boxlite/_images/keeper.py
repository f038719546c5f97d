"""What a home has of images: which there are, what they need, and what nothing needs.

Everything here blocks, for some files each; what changes something is called by one
task at a time.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._errors import (
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
    StateError,
)

from .blobs import BlobStore
from .catalog import Catalog
from .config import CONFIG_BYTES_MAX, parse_config
from .descriptor import is_digest
from .image import Image
from .manifest import MANIFEST_BYTES_MAX, Manifest, parse_manifest
from .reference import Reference
from .roots import Roots, root_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from boxlite._layout import HomeLayout

    from .catalog import Entry
    from .config import ImageConfig

#: As many digits of a digest are taken for it, and shown of it.
_DIGITS: Final = 12
_SHORT_DIGEST: Final = re.compile(r"(?P<algorithm>sha256:)?(?P<digits>[0-9a-f]{12,64})")


@attrs.frozen(kw_only=True)
class Pruned:
    """What :meth:`~boxlite.Images.prune` removed.

    Args:
        images: The names of images, if it removed any.
        bytes: How much this freed.
    """

    images: tuple[str, ...]
    bytes: int


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

    def find(self, name: str, *, alone: bool = False) -> Entry:
        """Return what a reference, or a digest or its beginning, leads to.

        A name that is both is taken for a reference first. A digest leads to the image
        that has no other name, or else to the first of its names.

        Args:
            name: A reference, or the digest of a manifest, or its first 12 digits at least.
            alone: Take a digest only if it leads to one name.

        Raises:
            InvalidOptionError: It is neither, or the beginning of several digests, or the
                digest has several names.
            ImageNotFoundError: There is none.
        """
        digest = _SHORT_DIGEST.fullmatch(name) if isinstance(name, str) else None
        found = None
        if digest is None or not (digest["algorithm"] or is_digest(f"sha256:{name}")):
            found = self.catalog.get(str(Reference.parse(name)))
        if found is None and digest is not None:
            found = self._find_digest(name, f"sha256:{digest['digits']}", alone=alone)
        if found is None:
            raise ImageNotFoundError(shown_name(name), "this home has none of that name")
        return found

    def _find_digest(self, name: str, beginning: str, *, alone: bool) -> Entry | None:
        entries = [
            entry for entry in self.catalog.entries() if entry.manifest.digest.startswith(beginning)
        ]
        if len({entry.manifest.digest for entry in entries}) > 1:
            raise InvalidOptionError(
                "image", name, "more digits of the digest: those of several images begin with it"
            )
        for entry in entries:
            if entry.name == entry.manifest.digest:
                return entry
        if alone and len(entries) > 1:
            names = ", ".join(sorted(shown_name(entry.name) for entry in entries))
            raise InvalidOptionError("image", name, f"one of the names of the image: {names}")
        return min(entries, key=lambda entry: entry.name, default=None)

    def documents(self, entry: Entry) -> tuple[Manifest, ImageConfig]:
        """Return the manifest and the configuration of an image.

        Raises:
            ImageNotFoundError: One of them is missing.
            ImageRefusedError: One of them is none.
        """
        manifest = self._manifest(entry)
        with _one_error(entry):
            data = self.blobs.read(manifest.config, CONFIG_BYTES_MAX)
            return manifest, parse_config(data, layers=len(manifest.layers))

    def _manifest(self, entry: Entry) -> Manifest:
        with _one_error(entry):
            manifest = parse_manifest(self.blobs.read(entry.manifest, MANIFEST_BYTES_MAX))
            if not isinstance(manifest, Manifest):
                raise ValueError("its manifest is an index")
            if manifest.digest != entry.manifest.digest:
                raise ValueError("its manifest is damaged")
            return manifest

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
            layers_bytes=sum({layer.digest: layer.size for layer in manifest.layers}.values()),
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

    def remove(self, name: str, roots_in_use: Collection[str]) -> None:
        """Forget a name, and remove what of its image nothing else needs.

        Args:
            name: As for :meth:`find`.
            roots_in_use: The roots that boxes use.

        Raises:
            StateError: A box uses it, and no other name leads to the same root.
            InvalidOptionError, ImageNotFoundError: As :meth:`find`, with ``alone``.
            OSError: Something cannot be removed.
        """
        entry = self.find(name, alone=True)
        if self._is_used(entry, roots_in_use) and self._is_last(entry):
            what = f"remove the image {shown_name(entry.name)}"
            raise StateError(what, required="unused", actual="used by a box")
        self.catalog.remove(entry.name)
        self.collect(roots_in_use, of=entry)

    def prune(self, roots_in_use: Collection[str], *, unused: bool) -> Pruned:
        """Remove what nothing needs.

        Args:
            roots_in_use: The roots that boxes use.
            unused: Forget all images first that no box uses.

        Raises:
            OSError: Something cannot be removed.
        """
        gone = [
            entry
            for entry in self.catalog.entries()
            if unused and not self._is_used(entry, roots_in_use)
        ]
        for entry in gone:
            self.catalog.remove(entry.name)
        names = sorted(shown_name(entry.name) for entry in gone)
        return Pruned(images=tuple(names), bytes=self.collect(roots_in_use))

    def collect(self, roots_in_use: Collection[str], *, of: Entry | None = None) -> int:
        """Remove what no name leads to, and no box uses; return the bytes that this freed.

        Args:
            roots_in_use: The roots that boxes use.
            of: An image whose name is gone: only what this is made of. Default: everything,
                downloads that were cut short, too.

        Raises:
            OSError: Something cannot be removed, or read: then it may be needed.
        """
        blobs: set[str] = set()
        roots = set(roots_in_use)
        for entry in self.catalog.entries():
            pieces = self._pieces(entry)
            blobs |= pieces.blobs
            roots |= pieces.roots
        freed = 0
        if of is None:
            self.catalog.sweep()
            freed += self.blobs.sweep()
            garbage = _Pieces({*self.blobs.digests()} - blobs, {*self.roots.names()} - roots)
        else:
            pieces = self._pieces(of)
            garbage = _Pieces(pieces.blobs - blobs, (pieces.roots - roots) & {*self.roots.names()})
        freed += sum(self.roots.remove(each) for each in garbage.roots)
        return freed + sum(self.blobs.remove(each) for each in garbage.blobs)

    def _is_used(self, entry: Entry, roots_in_use: Collection[str]) -> bool:
        return not self._pieces(entry).roots.isdisjoint(roots_in_use)

    def _is_last(self, entry: Entry) -> bool:
        """Tell whether no other name leads to the root of an image."""
        roots = self._pieces(entry).roots
        return all(
            other.name == entry.name or self._pieces(other).roots.isdisjoint(roots)
            for other in self.catalog.entries()
        )

    def _pieces(self, entry: Entry) -> _Pieces:
        """Return what an image is made of, as far as it is known: one that is broken has less."""
        pieces = _Pieces({entry.manifest.digest}, set())
        with suppress(ImageNotFoundError, ImageRefusedError):
            manifest = self._manifest(entry)
            pieces.blobs.update(piece.digest for piece in (manifest.config, *manifest.layers))
            _, config = self.documents(entry)
            pieces.roots.add(root_name(config.diff_ids))
        return pieces


@attrs.frozen
class _Pieces:
    """What an image is made of: the digests of blobs, and the names of roots."""

    blobs: set[str]
    roots: set[str]


@contextmanager
def _one_error(entry: Entry) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        fix = "Pull it again."
        raise ImageNotFoundError(
            shown_name(entry.name), "a part of it is missing", fix=fix
        ) from exc
    except ValueError as exc:
        raise ImageRefusedError(shown_name(entry.name), str(exc)) from exc


def shown_name(name: str) -> str:
    """Return a name as people read it."""
    if is_digest(name):
        return name.partition(":")[2][:_DIGITS]
    try:
        return Reference.parse(name).familiar
    except InvalidOptionError:
        return name[:200]
