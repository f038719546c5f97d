"""An archive as a plain tar in an open file, whatever it is compressed with. It blocks.

Like a layer it is decompressed into a file that has no name, once; one that is not
compressed is read where it is.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import ExitStack, closing, contextmanager
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from .layer_codec import pieces
from .layer_limits import LayerError, Limits
from .layer_spool import write_all
from .source_piece import Piece, UnreadableError, reading

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path
    from typing import BinaryIO

# A named pipe would be waited for, and a terminal would become this program's.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: As many bytes tell how something is compressed.
MAGIC_BYTES: Final = 6
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED: Final = b"\x2a\x4d\x18"
_XZ: Final = b"\xfd7zXZ\x00"


def compression_of(head: bytes) -> Literal["none", "gzip", "zstd", "xz"]:
    """Return what some data is compressed with, by its first bytes."""
    if head.startswith(_GZIP):
        return "gzip"
    # The second is a frame to be skipped: the first byte is its number and 0x50.
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPED and head[0] & 0xF0 == 0x50):
        return "zstd"
    return "xz" if head == _XZ else "none"


@attrs.frozen(kw_only=True)
class Tar:
    """An archive that is open.

    Args:
        source: It, as it was given.
        compression: What that is compressed with.
        plain: What is in it.
        digest: The digest of that; empty if it is the source itself.
    """

    source: Piece
    compression: Literal["none", "gzip", "zstd", "xz"]
    plain: Piece
    digest: str


@contextmanager
def open_tar(path: Path, scratch: Path, limits: Limits) -> Iterator[Tar]:
    """Open an archive while the block runs.

    Cancelled, it ends within 256 KiB. Nothing of it is left in ``scratch`` afterwards.

    Args:
        path: The archive.
        scratch: A directory with room for what is in it.
        limits: How much that may be.

    Raises:
        LayerError: It is damaged, or too large.
        UnreadableError: It cannot be read, or is no file.
        OSError: There is no room for what is in it.
    """
    with ExitStack() as opened:
        with reading():
            fd = os.open(path, _FILE_FLAGS)
            opened.callback(os.close, fd)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise UnreadableError("it is neither a file nor a directory")
            compression = compression_of(os.pread(fd, MAGIC_BYTES, 0))
        source = Piece(fd, 0, found.st_size)
        if compression == "none":
            yield Tar(source=source, compression="none", plain=source, digest="")
            return
        with (
            open(fd, "rb", buffering=0, closefd=False) as file,
            TemporaryFile(dir=scratch, buffering=0) as spool,
        ):
            digest, size = _decompress(file, spool, _most(found.st_size, limits))
            yield Tar(
                source=source,
                compression=compression,
                plain=Piece(spool.fileno(), 0, size),
                digest=digest,
            )


def _most(packed: int, limits: Limits) -> int:
    """Return how large an archive may become, which may have several layers."""
    return min(limits.image_bytes, max(limits.ratio_floor_bytes, limits.ratio * packed))


def _decompress(file: BinaryIO, spool: BinaryIO, most: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with closing(_readable(file)) as data:
        for piece in data:
            trio.from_thread.check_cancelled()
            size += len(piece)
            if size > most:
                raise LayerError(b"", f"it has more than {most} bytes in it")
            digest.update(piece)
            write_all(spool.fileno(), piece)
    return f"sha256:{digest.hexdigest()}", size


def _readable(file: BinaryIO) -> Generator[bytes, None, None]:
    """Yield what is in a file; what fails in here is the source's fault."""
    found = pieces(file)
    while True:
        with reading():
            piece = next(found, None)
        if piece is None:
            return
        yield piece
