"""Images from this machine's files: found out what they are, and put into the store.

A source is an OCI layout, as a directory or an archive, an archive of ``docker save``, or
a root file system, as a directory or a tar. What it is follows from what is in it, never
from what it is called.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from boxlite._errors import (
    BoxliteError,
    HostError,
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
)

from .layer_import import layer_from_directory
from .layer_limits import LayerError, Limits
from .platform import Platform
from .source_archive import ArchiveFiles
from .source_directory import DirectoryFiles
from .source_docker import DOCKER_NAME, find_in_docker, with_docker_names
from .source_found import Documents
from .source_layout import LAYOUT_NAME, find_in_layout
from .source_names import title_of
from .source_piece import Intake, SourceError, UnreadableError, reading
from .source_root import check_apart, store_layer, store_tar
from .source_spool import open_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .blobs import BlobStore
    from .descriptor import Descriptor
    from .reference import Reference
    from .source_found import Found
    from .source_piece import Files
    from .source_spool import Tar


@attrs.frozen
class Loaded:
    """An image that was put into the store.

    Args:
        name: What it is called, in full; None if it has no name.
        manifest: Its manifest, for one platform.
    """

    name: str | None
    manifest: Descriptor


async def load_source(
    store: BlobStore,
    source: Path,
    *,
    scratch: Path,
    name: Reference | None = None,
    platform: Platform | None = None,
    limits: Limits | None = None,
) -> list[Loaded]:
    """Put the images of a file or a directory into the store: manifests, configurations, layers.

    What is put there was verified against its digest. Of several images those for other
    platforms are left out. Nothing is written but in the store and in ``scratch``, and no
    file is called what a source calls it. Cancelled, it ends within 256 KiB, or when the
    disk has what a whole piece was; what was whole by then stays in the store, where
    nothing leads to it.

    Args:
        store: The store.
        source: An OCI layout; an archive of one or of ``docker save``, or a tar of a root
            file system, which gzip, zstd or xz may have compressed; or a directory with a
            root file system.
        scratch: A directory on the store's file system, which the caller removes.
        name: What the image is to be called. Default: what the source says, which for a
            root file system is nothing.
        platform: The machine that it is for. Default: ``linux/amd64``.
        limits: How much it may have. Default: :class:`~.layer_limits.Limits`.

    Returns:
        The images, each once for each of its names; at least one.

    Raises:
        InvalidOptionError: The source cannot be read; a name is missing, or there are
            several images for one.
        ImageNotFoundError: It has no image for the platform.
        ImageRefusedError: It is broken, or meant to do harm.
        ImageError: A root file system's directory cannot be read, or changed meanwhile.
        HostError: There is no room.
    """
    loading = _Loading(
        source=source,
        intake=Intake(store=store, scratch=scratch, limits=limits or Limits()),
        name=name,
        platform=platform or Platform(),
    )
    with _one_error(source, store):
        return await loading.run()


@attrs.frozen(kw_only=True)
class _Loading:
    source: Path
    intake: Intake
    name: Reference | None
    platform: Platform

    async def run(self) -> list[Loaded]:
        if not await trio.to_thread.run_sync(self._is_root_directory):
            return await trio.to_thread.run_sync(self._take)
        name = self._required_name(f"it is a directory without the file {LAYOUT_NAME}")
        intake = self.intake
        await trio.to_thread.run_sync(check_apart, self.source, intake.scratch, intake.store.root)
        path = intake.scratch / "layer"
        layer = await layer_from_directory(self.source, path)
        manifest = await trio.to_thread.run_sync(store_layer, layer, path, intake, self.platform)
        return [self._named(name, manifest)]

    def _is_root_directory(self) -> bool:
        with reading():
            if not stat.S_ISDIR(self.source.stat().st_mode):
                return False
            with self._open_directory() as files:
                return not files.has(LAYOUT_NAME)

    @contextmanager
    def _open_directory(self) -> Iterator[DirectoryFiles]:
        with reading():
            fd = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield DirectoryFiles(fd)
        finally:
            os.close(fd)

    def _take(self) -> list[Loaded]:
        with reading():
            is_directory = stat.S_ISDIR(self.source.stat().st_mode)
        if is_directory:
            with self._open_directory() as files:
                return self._take_layout(files)
        with open_tar(self.source, self.intake.scratch, self.intake.limits) as tar:
            return self._take_archive(tar)

    def _take_archive(self, tar: Tar) -> list[Loaded]:
        with reading():
            files = ArchiveFiles(tar.plain.fd, self.intake.limits)
        if files.is_layout:
            files.check()
            return self._take_layout(files)
        if files.is_docker:
            files.check()
            there: list[str] = []
            found = find_in_docker(Documents(files), self.platform, there)
            return self._take_found(found, there)
        if files.is_fragment:
            raise SourceError(
                f"it has pieces of images, and neither {LAYOUT_NAME} nor {DOCKER_NAME}: it is"
                " not whole, or of a Docker before 1.10"
            )
        if not files.members:
            raise SourceError("there is nothing in it")
        name = self._required_name(f"it has neither {LAYOUT_NAME} nor {DOCKER_NAME}")
        return [self._named(name, store_tar(tar, self.intake, self.platform))]

    def _take_layout(self, files: Files) -> list[Loaded]:
        documents, there = Documents(files), list[str]()
        found = find_in_layout(documents, self.platform, title_of(self.source), there)
        if files.has(DOCKER_NAME):
            found = with_docker_names(found, documents)
        return self._take_found(found, there)

    def _take_found(self, found: list[Found], there: list[str]) -> list[Loaded]:
        if not found:
            self._refuse_none(there)
        if self.name is not None:
            if len(found) > 1:
                raise InvalidOptionError(
                    "name", str(self.name), f"left out: {self.source} has {len(found)} images"
                )
            manifest = found[0].take(self.intake)
            return [self._named(self.name, manifest, found[0].digests)]
        for name, images in Counter(name for each in found for name in each.names).items():
            if images > 1:
                raise SourceError(f"{images} images in it are called {name.familiar}")
        loaded = []
        for each in found:
            manifest = each.take(self.intake)
            loaded += [Loaded(str(name), manifest) for name in each.names]
            if not each.names:
                loaded.append(Loaded(None, manifest))
        return loaded

    def _refuse_none(self, there: list[str]) -> None:
        if not there:
            raise SourceError("there is no image in it")
        known = list(dict.fromkeys(there))
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise ImageNotFoundError(
            str(self.source), f"there is none for {self.platform}: there is {shown}"
        )

    def _required_name(self, why: str) -> Reference:
        if self.name is None:
            raise InvalidOptionError(
                "name",
                None,
                f"given: {self.source} is taken for a root file system, which has none ({why})",
            )
        return self.name

    def _named(
        self, name: Reference, manifest: Descriptor, digests: tuple[str, ...] = ()
    ) -> Loaded:
        if name.digest is not None and name.digest not in (manifest.digest, *digests):
            raise InvalidOptionError(
                "name", str(name), f"one without a digest, or with its own, {manifest.digest}"
            )
        return Loaded(str(name), manifest)


@contextmanager
def _one_error(source: Path, store: BlobStore) -> Iterator[None]:
    try:
        yield
    except BoxliteError:
        raise
    except SourceError as exc:
        raise ImageRefusedError(str(source), str(exc)) from exc
    except LayerError as exc:
        member = exc.member[:200].decode(errors="backslashreplace")
        problem = f"{member!r} in it: {exc.problem}" if member else exc.problem
        raise ImageRefusedError(str(source), problem) from exc
    except UnreadableError as exc:
        raise InvalidOptionError(
            "source", str(source), f"a file or a directory that can be read ({exc})"
        ) from exc
    except OSError as exc:
        raise HostError(
            f"the images of {source} cannot be kept in {store.root}: {exc.strerror or exc}",
            fix="Check the space and the rights there.",
        ) from exc
