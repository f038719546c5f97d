"""The layers of an image become one squashfs, the root that its boxes share.

::

    layers --> spool (decompressed, verified)  --> tree in memory --> tar --> tar2sqfs
               several at a time, in threads       one at a time      a pipe

No data of a file passes through Python after it was decompressed: the kernel moves it
from the spool to the pipe.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from boxlite._errors import HostError, ImageRefusedError
from boxlite._scopes import open_nursery_unwrapped

from .flat_tar import FlatTar, Span, Zeros
from .layer_limits import Budget, LayerError, Limits
from .layer_spool import PARALLEL_MAX, Spooler, processors, write_all
from .root_layers import RootLayers
from .root_tree import count_bytes
from .squashfs import PATIENCE_RATE, PATIENCE_SECONDS, find_tar2sqfs, write_squashfs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from .descriptor import Descriptor
    from .root_tree import Directory

_PIECE_BYTES: Final = 1 << 20
_REPORT_BYTES: Final = 8 << 20
_ZEROS: Final = bytes(256 << 10)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@attrs.frozen(kw_only=True)
class ConvertProgress:
    """How far the conversion of an image is.

    Args:
        image: The image, as a person would name it.
        step: ``unpack`` while layers are decompressed, then ``pack``.
        done_bytes: How much of this step is done: bytes of compressed layers, or bytes
            of files.
        total_bytes: How much there is to do in it.
    """

    image: str
    step: Literal["unpack", "pack"]
    done_bytes: int
    total_bytes: int


@attrs.frozen(kw_only=True)
class RootInfo:
    """What was made of an image.

    Args:
        size: The bytes of the squashfs.
        entries: The files, directories, links and devices in it, the root included.
        file_bytes: The bytes of its files, holes included.
    """

    size: int
    entries: int
    file_bytes: int


async def build_root(
    *,
    image: str,
    layers: Sequence[tuple[Descriptor, Path]],
    diff_ids: Sequence[str],
    scratch: Path,
    out: Path,
    limits: Limits | None = None,
    on_progress: Callable[[ConvertProgress], object] | None = None,
) -> RootInfo:
    """Make the root file system of an image.

    It makes ``out``, whole and on the disk, or raises and leaves nothing, there and in
    ``scratch``. The same layers give the same bytes. Cancelling ends it within what one
    thread does with a mebibyte.

    Args:
        image: The image, as a person would name it.
        layers: Its layers, the lowest first, and where their blobs are, which were
            verified against their digests.
        diff_ids: The digests of what is in them, from the image's configuration.
        scratch: A directory with room for all layers, decompressed.
        out: The file to make; nothing is there yet.
        limits: How much it may have. Default: :class:`~.layer_limits.Limits`.
        on_progress: Called in Trio's thread, now and then. What it raises ends this.

    Raises:
        ImageRefusedError: A layer is broken, is not what its digest says, asks for more
            than the limits, or has what no root can have.
        HostError: There is no ``tar2sqfs``, it failed, or there is no room.
    """
    conversion = _Conversion(image, limits or Limits(), scratch, on_progress)
    try:
        return await conversion.run(layers, diff_ids, out)
    except LayerError as exc:
        member = exc.member.decode(errors="backslashreplace")
        raise ImageRefusedError(
            image, exc.problem, member=member if len(member) <= 200 else f"{member[:200]}..."
        ) from exc
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise _no_room(image, scratch) from exc
        raise HostError(
            f"the image {image} cannot be unpacked in {scratch}: {exc.strerror or exc}",
            fix="Check the rights there.",
        ) from exc


class _Conversion:
    def __init__(
        self,
        image: str,
        limits: Limits,
        scratch: Path,
        on_progress: Callable[[ConvertProgress], object] | None,
    ) -> None:
        self._image = image
        self._limits = limits
        self._scratch = scratch
        self._listener = on_progress

    async def run(
        self, layers: Sequence[tuple[Descriptor, Path]], diff_ids: Sequence[str], out: Path
    ) -> RootInfo:
        program = find_tar2sqfs()
        if len(layers) != len(diff_ids):
            raise LayerError(
                b"", f"it has {len(layers)} layers and its configuration has {len(diff_ids)}"
            )
        packed = sum(descriptor.size for descriptor, _ in layers)
        if await trio.to_thread.run_sync(_room, self._scratch) < packed:
            raise _no_room(self._image, self._scratch)
        with ExitStack() as opened:
            spools, root = await self._unpack(layers, diff_ids, packed, opened)
            tar = FlatTar(root)
            file_bytes = await trio.to_thread.run_sync(count_bytes, root)
            meter = _Meter(self, "pack", file_bytes)

            def write(pipe: int) -> None:
                _write(tar, [spool.fileno() for spool in spools], pipe, meter.advance)

            seconds = PATIENCE_SECONDS + file_bytes / PATIENCE_RATE
            await write_squashfs(write, out, program=program, seconds=seconds)
        return RootInfo(size=_size(out), entries=tar.entries, file_bytes=file_bytes)

    async def _unpack(
        self,
        layers: Sequence[tuple[Descriptor, Path]],
        diff_ids: Sequence[str],
        packed: int,
        opened: ExitStack,
    ) -> tuple[list[BinaryIO], Directory]:
        """Decompress the layers and apply each as soon as it and those below it are there."""
        limits = self._limits
        spooler = Spooler(
            scratch=self._scratch,
            limits=limits,
            unpacked=Budget(limits.image_bytes, "bytes in its layers"),
            advance=_Meter(self, "unpack", packed).advance,
        )
        tree = RootLayers(limits, trio.from_thread.check_cancelled)
        spools: list[BinaryIO | None] = [None] * len(layers)
        ready = [trio.Event() for _ in layers]
        slots = trio.Semaphore(max(1, min(processors(), PARALLEL_MAX)))

        async def open_layer(index: int) -> None:
            async with slots:
                descriptor, blob = layers[index]
                spool = await spooler.open(descriptor, blob, diff_ids[index])
            opened.enter_context(spool)
            spools[index] = spool
            ready[index].set()

        async with open_nursery_unwrapped() as nursery:
            for index in range(len(layers)):
                nursery.start_soon(open_layer, index)
            for index, event in enumerate(ready):
                await event.wait()
                spool = spools[index]
                assert spool is not None
                await trio.to_thread.run_sync(tree.apply_file, spool.fileno())
        return [spool for spool in spools if spool is not None], tree.root

    def tell(self, step: Literal["unpack", "pack"], done: int, total: int) -> None:
        """Tell how far a step is, from a thread."""
        if self._listener is not None:
            progress = ConvertProgress(
                image=self._image, step=step, done_bytes=min(done, total), total_bytes=total
            )
            trio.from_thread.run_sync(self._listener, progress)


class _Meter:
    """Adds up what threads do in a step, and tells about it now and then."""

    def __init__(self, owner: _Conversion, step: Literal["unpack", "pack"], total: int) -> None:
        self._owner = owner
        self._step = step
        self._total = total
        self._done = self._told = 0
        self._lock = Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            done = self._done
            if done - self._told < _REPORT_BYTES and done < self._total:
                return
            self._told = done
            # Under the lock, so that nobody is told of less than before.
            self._owner.tell(self._step, done, self._total)


def _write(
    tar: FlatTar, spools: Sequence[int], pipe: int, advance: Callable[[int], object]
) -> None:
    """Write a tar to a pipe, in a thread."""
    advance(0)
    for part in tar.parts():
        trio.from_thread.check_cancelled()
        match part:
            case Span(layer, offset, size):
                while size:
                    trio.from_thread.check_cancelled()
                    sent = os.sendfile(pipe, spools[layer], offset, min(size, _PIECE_BYTES))
                    if not sent:
                        raise OSError(errno.EIO, "a layer became shorter while it was read")
                    offset, size = offset + sent, size - sent
                    advance(sent)
            case Zeros(size):
                while size:
                    trio.from_thread.check_cancelled()
                    sent = os.write(pipe, _ZEROS[:size])
                    size -= sent
                    advance(sent)
            case bytes():
                write_all(pipe, part)


def _size(path: Path) -> int:
    return path.stat().st_size


def _room(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _no_room(image: str, scratch: Path) -> HostError:
    return HostError(
        f"there is no room in {scratch} to unpack the image {image}",
        fix="Free some space there, or give boxlite another home: BOXLITE_HOME.",
    )
