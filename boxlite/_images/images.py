"""The images of a home as a runtime has them: pulled, loaded, listed, removed."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import trio

from boxlite._errors import HostError, ImageNotFoundError, ImageRefusedError, InvalidOptionError

from .catalog import Entry
from .flatten import build_root
from .gate import Gate
from .keeper import Keeper, Pruned, shown_name
from .platform import Platform
from .reference import Reference
from .roots import root_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from boxlite._layout import HomeLayout

    from .config import ImageConfig
    from .descriptor import Descriptor
    from .endpoints import RegistryOptions
    from .flatten import ConvertProgress
    from .image import Image
    from .manifest import Manifest
    from .progress import PullProgress

    OnProgress = Callable[[PullProgress | ConvertProgress], None]

__all__ = ["Images", "Pruned"]

T = TypeVar("T")


class Images:
    """The images of one home: ``runtime.images``.

    An image is its blobs, its names, and a root file system that is made when it comes.
    Everything is put in place whole: a program that is killed at any moment leaves what
    was there and at most garbage, which :meth:`prune` removes.

    Any number of tasks may use it at once. What several of them want is downloaded once
    and made once.

    Args:
        home: The home.
        registries: How registries are dealt with.
        kept: Tells the names of the roots of boxes that run on without this program.
    """

    def __init__(
        self,
        home: HomeLayout,
        registries: RegistryOptions | None = None,
        kept: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._home = home
        self._registries = registries
        self._kept = kept
        self._keeper = Keeper(home)
        self._gate = Gate()
        # Held for moments only: who looks for an image does not wait for pulls to end.
        self._looking = Gate()
        self._making: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._used: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<boxlite.Images {self._home.images}>"

    async def pull(
        self,
        name: str,
        *,
        platform: str | None = None,
        credentials: tuple[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Image:
        """Get an image from its registry and make it ready.

        What the home has of it is not downloaded again. Cancelling it keeps what is whole,
        and the beginnings of the rest, from which the next pull goes on.

        Args:
            name: A reference, such as ``alpine``, ``ghcr.io/owner/image:tag`` or one with
                a digest, completed as Docker does.
            platform: ``OS/ARCHITECTURE[/VARIANT]``. Default ``linux/amd64``.
            credentials: User and password. Default: what Docker's configuration has.
            on_progress: Called synchronously with each :class:`PullProgress` and
                :class:`ConvertProgress`.

        Raises:
            InvalidOptionError: An argument cannot work.
            ImageNotFoundError: There is none of that name, or none for the platform.
            RegistryError: The registry refused, failed, or could not be reached.
            ImageRefusedError: Its data is broken, or meant to do harm.
            HostError: It cannot be kept, or ``tar2sqfs`` is missing.
        """
        reference = Reference.parse(name)
        wanted = Platform.parse(platform) if platform is not None else None
        # It imports httpx, which takes some 100 ms.
        from .registry import open_client  # noqa: PLC0415

        async with self._gate.adding():
            async with open_client(self._keeper.blobs, self._registries) as client:
                pulled = await client.pull(
                    reference, platform=wanted, credentials=credentials, on_progress=on_progress
                )
            return await self._add(str(reference), pulled.manifest_descriptor, on_progress)

    async def load(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        platform: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Image]:
        """Take images from this machine's files, and make them ready.

        Args:
            source: An OCI layout directory, an OCI or ``docker save`` archive, or a root
                file system as a directory or a tarball. Archives may be compressed.
            name: What the image is to be called, if it has no name or is to have another.
            platform: ``OS/ARCHITECTURE[/VARIANT]``. Default ``linux/amd64``.
            on_progress: Called synchronously with each :class:`ConvertProgress`.

        Raises:
            InvalidOptionError: An argument cannot work.
            ImageNotFoundError: There is none for the platform.
            ImageRefusedError: Its data is broken, or meant to do harm.
            HostError: It cannot be kept, or ``tar2sqfs`` is missing.
        """
        if not isinstance(source, (str, Path)) or not str(source) or "\0" in str(source):
            raise InvalidOptionError("source", source, "the path of a file or a directory")
        reference = Reference.parse(name) if name is not None else None
        wanted = Platform.parse(platform) if platform is not None else None
        # Few programs ever load one.
        from .sources import load_source  # noqa: PLC0415

        path = await self._in_thread(Path(source).absolute)
        async with self._gate.adding():
            with self._workshop() as work:
                loaded = await load_source(
                    self._keeper.blobs,
                    path,
                    scratch=work,
                    name=reference,
                    platform=wanted,
                )
            return [
                await self._add(each.name or each.manifest.digest, each.manifest, on_progress)
                for each in loaded
            ]

    async def get(self, name: str) -> Image:
        """Return an image that the home has.

        Args:
            name: A reference, or the digest of a manifest, or its first 12 digits at least.

        Raises:
            InvalidOptionError: It is neither, or the beginning of several digests.
            ImageNotFoundError: The home has none of that name, or not all of it.
            ImageRefusedError: What the home has of it is damaged.
        """
        async with self._looking.adding():
            return await self._in_thread(lambda: self._keeper.image(self._keeper.find(name)))

    async def list(self) -> list[Image]:
        """Return the images of the home by their names. One that is incomplete is left out."""
        return await self._in_thread(self._keeper.images)

    async def ready(self, name: str, *, on_progress: OnProgress | None = None) -> Image:
        """Return an image that the home has, or pull it, also if what it has is damaged.

        A digest without a name is that of an image of the home: nobody else is asked for it.
        Arguments and errors as for :meth:`get` and :meth:`pull`.
        """
        try:
            return await self.get(name)
        except (ImageNotFoundError, ImageRefusedError):
            if name.startswith("sha256:"):
                raise
            return await self.pull(name, on_progress=on_progress)

    async def remove(self, name: str) -> None:
        """Forget a name of an image, and remove what of it nothing else needs.

        It waits for pulls that are under way. What pulls left that were cut short stays.

        Args:
            name: As for :meth:`get`. A digest only does if the image has one name.

        Raises:
            InvalidOptionError: It is no name, or the digest of an image with several.
            ImageNotFoundError: The home has none of that name.
            StateError: A box uses it, and no other name leads to the same files.
            HostError: Something cannot be removed.
        """
        async with self._gate.removing(), self._looking.removing():
            await self._in_thread(lambda: self._keeper.remove(name, self._roots_in_use()))

    async def prune(self, *, all: bool = False) -> Pruned:  # noqa: A002 - as container tools say
        """Remove what nothing needs: blobs, roots and downloads that no name leads to.

        It waits for pulls that are under way.

        Args:
            all: Remove all images that no box uses, too. Default: only what has no name.

        Raises:
            HostError: Something cannot be removed.
        """
        async with self._gate.removing(), self._looking.removing():
            return await self._in_thread(
                lambda: self._keeper.prune(self._roots_in_use(), unused=all)
            )

    @contextmanager
    def using(self, image: Image) -> Iterator[None]:
        """Keep the root of an image from being removed while the block runs.

        It is not removed between the moment in which :meth:`get`, :meth:`ready` or
        :meth:`pull` returned it and the next checkpoint: a block that is begun before that
        is in time.
        """
        self._used[image.root.name] += 1
        try:
            yield
        finally:
            self._used[image.root.name] -= 1
            if not self._used[image.root.name]:
                del self._used[image.root.name]

    def _roots_in_use(self) -> set[str]:
        # tuple() takes one step: boxes come and go while this runs in a thread.
        return {*self._kept(), *tuple(self._used)}

    async def _add(self, name: str, made_of: Descriptor, on_progress: OnProgress | None) -> Image:
        """Make the root of an image whose blobs are there; then it has its name."""
        entry = Entry(name=name, manifest=made_of, added_at=time.time())
        manifest, config = await self._in_thread(lambda: self._keeper.documents(entry))
        await self._make_root(shown_name(name), manifest, config, on_progress)
        await self._in_thread(lambda: self._keeper.catalog.put(entry))
        return await self._in_thread(lambda: self._keeper.image(entry))

    async def _make_root(
        self, shown: str, manifest: Manifest, config: ImageConfig, on_progress: OnProgress | None
    ) -> None:
        name = root_name(config.diff_ids)
        roots, path = self._keeper.roots, self._keeper.blobs.path
        async with self._making.setdefault(name, trio.Lock()):
            if await self._in_thread(lambda: roots.size(name)) is not None:
                return
            with self._workshop() as work:
                await build_root(
                    image=shown,
                    layers=[(layer, path(layer.digest)) for layer in manifest.layers],
                    diff_ids=config.diff_ids,
                    scratch=work,
                    out=work / name,
                    on_progress=on_progress,
                )
                await self._in_thread(lambda: roots.publish(work / name, name))

    @contextmanager
    def _workshop(self) -> Iterator[Path]:
        with self._one_error(), self._keeper.roots.workshop() as work:
            yield work

    async def _in_thread(self, function: Callable[[], T]) -> T:
        with self._one_error():
            return await trio.to_thread.run_sync(function)

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            where = exc.filename or self._home.images
            raise HostError(
                f"the images in {self._home.images} cannot be used: {where}: {exc.strerror or exc}",
                fix="Check the space and the rights there.",
            ) from exc
