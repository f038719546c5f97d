"""What is in a compressed file, piece by piece, whatever it says it is. It blocks.

The first bytes decide how it is compressed, not the media type: registries hold
layers that are mislabelled, and what comes out is verified by its digest anyway.
No piece is larger than 256 KiB, however well it was compressed.
"""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, Final

from .layer_limits import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

PIECE_BYTES: Final = 256 << 10

_READ_BYTES: Final = 64 << 10
_MAGIC_BYTES: Final = 6
#: What zstd's own tool takes without being asked to (ZSTD_WINDOWLOG_LIMIT_DEFAULT).
_ZSTD_WINDOW: Final = 1 << 27
#: xz -9 needs 65 MiB.
_XZ_MEMORY: Final = 128 << 20


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield what is in a file, decompressed: gzip, zstd, xz, or what is none of these.

    gzip and zstd may come in several parts, one after the other; gzip's may be followed
    by zeros, as gzip(1) has it. Other bytes that follow are refused.

    Args:
        file: A file without a buffer, at its beginning.

    Raises:
        LayerError: It is damaged, or ends early where that can be told.
        OSError: It cannot be read.
    """
    return _decoder(file)(file)


def is_compressed(file: BinaryIO) -> bool:
    """Tell whether a file, which is at its beginning and stays there, is compressed."""
    return _decoder(file) is not _copy


def _decoder(file: BinaryIO) -> Callable[[BinaryIO], Iterator[bytes]]:
    magic = file.read(_MAGIC_BYTES)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _gunzip
    # The second is a frame to be skipped: the first byte is its number and 0x50.
    if magic.startswith(b"\x28\xb5\x2f\xfd") or (
        magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50
    ):
        return _unzstd
    if magic == b"\xfd7zXZ\x00":
        return _unxz
    return _copy


def _copy(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    held, is_first, is_begun = b"", True, False
    member = zlib.decompressobj(wbits=31)
    while True:
        data = held or file.read(_READ_BYTES)
        if not data and not is_begun:
            return
        if not is_first and not is_begun and data.startswith(b"\0"):
            _expect_zeros(data, file)
            return
        try:
            piece = member.decompress(data, PIECE_BYTES)
        except zlib.error as exc:
            raise LayerError(b"", f"its gzip data is damaged ({exc})") from exc
        if not (data or piece or member.eof):
            raise LayerError(b"", "its gzip data ends early")
        held, is_begun = member.unconsumed_tail, True
        if member.eof:
            held, is_first, is_begun = member.unused_data, False, False
            member = zlib.decompressobj(wbits=31)
        if piece:
            yield piece


def _expect_zeros(data: bytes, file: BinaryIO) -> None:
    while data:
        if data.strip(b"\0"):
            raise LayerError(b"", "something follows its gzip data")
        data = file.read(_READ_BYTES)


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - it is slow to import, and few layers are of it

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decompressor.stream_reader(
        file, read_size=_READ_BYTES, read_across_frames=True, closefd=False
    ) as reader:
        try:
            while piece := reader.read(PIECE_BYTES):
                yield piece
        except zstandard.ZstdError as exc:
            raise LayerError(b"", f"its zstd data is damaged ({exc})") from exc


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    while not decompressor.eof:
        data = file.read(_READ_BYTES) if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise LayerError(b"", "its xz data ends early")
        try:
            piece = decompressor.decompress(data, PIECE_BYTES)
        except lzma.LZMAError as exc:
            raise LayerError(b"", f"its xz data is damaged ({exc})") from exc
        if piece:
            yield piece
    if decompressor.unused_data or file.read(1):
        raise LayerError(b"", "something follows its xz data")
