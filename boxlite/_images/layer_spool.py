"""A layer as a plain tar in an open file, decompressed once and verified.

It is a file without a name wherever the file system has such, and loses its name at
once elsewhere: whatever happens, nothing of it is left when it is closed.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .layer_codec import is_compressed, pieces
from .layer_limits import Budget, LayerError, Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from .descriptor import Descriptor

#: How many layers are decompressed at the same time; less if there are less processors.
PARALLEL_MAX: Final = 4


@attrs.frozen(kw_only=True)
class Spooler:
    """Decompresses the layers of one image.

    Args:
        scratch: The directory for what is decompressed.
        limits: How large a layer may become.
        unpacked: Counts what all of them become.
        advance: Called in a thread with each number of compressed bytes that were used.
    """

    scratch: Path
    limits: Limits
    unpacked: Budget
    advance: Callable[[int], object]

    async def open(self, descriptor: Descriptor, blob: Path, diff_id: str) -> BinaryIO:
        """Return an open file with the tar of a layer. The caller closes it.

        Cancelled, it ends within one piece of 256 KiB. A layer that is not compressed is
        not copied: it is the blob itself.

        Args:
            descriptor: The layer.
            blob: Where its data is, which was verified.
            diff_id: The digest of what is in it.

        Raises:
            LayerError: It is damaged, too large, or not what the digest says.
            OSError: It cannot be read, or there is no room for it.
        """
        return await trio.to_thread.run_sync(self._open, descriptor, blob, diff_id)

    def _open(self, descriptor: Descriptor, blob: Path, diff_id: str) -> BinaryIO:
        with ExitStack() as failing:
            packed: BinaryIO = failing.enter_context(blob.open("rb", buffering=0))
            if diff_id == descriptor.digest:
                # Verified already, and a plain tar, whatever its first bytes look like.
                self.unpacked.take(descriptor.size)
                self.advance(descriptor.size)
                failing.pop_all()
                return packed
            if not is_compressed(packed):
                raise LayerError(b"", _mismatch(descriptor.digest, descriptor.digest, diff_id))
            with packed:
                spool: BinaryIO = failing.enter_context(
                    TemporaryFile(dir=self.scratch, buffering=0)
                )
                self._decompress(descriptor, packed, spool, diff_id)
            failing.pop_all()
            return spool

    def _decompress(
        self, descriptor: Descriptor, packed: BinaryIO, spool: BinaryIO, diff_id: str
    ) -> None:
        most = self.limits.unpacked_max(descriptor.size)
        digest = hashlib.sha256()
        size = used = 0
        for piece in pieces(packed):
            trio.from_thread.check_cancelled()
            size += len(piece)
            if size > most:
                raise LayerError(
                    b"",
                    f"the layer {descriptor.digest} of {descriptor.size} bytes has more than"
                    f" {most} in it",
                )
            self.unpacked.take(len(piece))
            digest.update(piece)
            write_all(spool.fileno(), piece)
            position = packed.tell()
            self.advance(position - used)
            used = position
        self.advance(descriptor.size - used)
        found = f"sha256:{digest.hexdigest()}"
        if found != diff_id:
            raise LayerError(b"", _mismatch(descriptor.digest, found, diff_id))


def _mismatch(layer: str, found: str, expected: str) -> str:
    return f"what is in the layer {layer} has the digest {found}, and it should be {expected}"


def write_all(fd: int, data: bytes) -> None:
    """Write all of some bytes to a file that may take them in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
