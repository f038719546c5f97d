"""The members of a layer: everything that tars have been written as.

That is v7, ustar, pax, and GNU tar's long names, numbers in base 256, and files with
holes. Where the formats leave room it is read as by Go's ``archive/tar``, because that
is what image builders test their layers with:

* numbers may have spaces and NULs around them, and the checksum may be of signed bytes;
* links, directories and devices have no data, whatever their size says;
* a tar may end without its two blocks of zeros, but not within a member.

More than umoci takes are: global headers, which say nothing that counts here and are
skipped, GNU's old type ``S`` for files with holes, and POSIX's type ``7`` for files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from boxlite._tree.format import BLOCK, padding

from .layer_extended import (
    check_map,
    decimal,
    parse_map,
    parse_records,
    sparse_format,
    sparse_size,
    take_map,
    xattrs_of,
)
from .layer_header import device_of, has_checksum, id_at, name_of, number_at, old_pieces
from .layer_limits import Budget, LayerError, Limits
from .layer_member import Kind, Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layer_extended import Segments


_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER_DEVICE,
    b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_LINKS: Final = (Kind.HARD_LINK, Kind.SYMLINK)
_DEVICES: Final = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_ZEROS: Final = bytes(BLOCK)
_WINDOW: Final = 64 << 10


class LayerReader:
    """Reads the members of one layer, from its headers alone. It blocks.

    Args:
        fd: An open file with the tar.
        limits: How much one member may have.
        metadata: Counts names, targets and extended headers of the whole image.
    """

    def __init__(self, fd: int, limits: Limits, metadata: Budget) -> None:
        self._fd = fd
        self._limits = limits
        self._metadata = metadata
        self._end = os.fstat(fd).st_size
        self._held, self._held_at = b"", 0
        self._at = 0
        self._records: dict[bytes, bytes] = {}
        self._long: dict[bytes, bytes] = {}  # GNU's long name and target, by type.

    def members(self) -> Iterator[Member]:
        """Yield each member.

        Raises:
            LayerError: It is no tar, damaged, or over a limit.
            OSError: It cannot be read.
        """
        while block := self._read(self._at, BLOCK):
            if len(block) < BLOCK:
                raise LayerError(b"", "the tar ends within a header")
            if block == _ZEROS:
                if self._read(self._at + BLOCK, BLOCK) not in (_ZEROS, b""):
                    raise LayerError(b"", "there is a block of zeros where a member is to be")
                break
            self._at += BLOCK
            member = self._take(block)
            if member is not None:
                yield member
        if self._records or self._long:
            raise LayerError(b"", "the tar ends after an extended header")

    def _read(self, at: int, size: int) -> bytes:
        """Return bytes of the layer: less at its end."""
        begin = at - self._held_at
        if not (begin >= 0 and begin + size <= len(self._held)):
            self._held, self._held_at = os.pread(self._fd, max(size, _WINDOW), at), at
            begin = 0
        return self._held[begin : begin + size]

    def _take(self, block: bytes) -> Member | None:
        name, flag = name_of(block), block[156:157]
        if not has_checksum(block):
            raise LayerError(name, "its header is damaged, or the layer is no tar")
        size = number_at(block, 124, 12, "size")
        match flag:
            case b"x":
                self._records = parse_records(self._extended(size, name))
            case b"g":
                self._extended(size, name)
            case b"L" | b"K":
                self._long[flag] = self._extended(size, name).partition(b"\0")[0]
            case _:
                records, self._records = self._records, {}
                long, self._long = self._long, {}
                return self._member(block, size, records, long)
        return None

    def _extended(self, size: int, name: bytes) -> bytes:
        if size > self._limits.extended_bytes:
            raise LayerError(
                name,
                f"an extended header of it has {size} bytes, more than"
                f" {self._limits.extended_bytes}",
            )
        self._metadata.take(size, name)
        data = self._read(self._at, size)
        if len(data) < size:
            raise LayerError(name, "the tar ends within an extended header")
        self._at += size + padding(size)
        return data

    def _member(
        self, block: bytes, size: int, records: dict[bytes, bytes], long: dict[bytes, bytes]
    ) -> Member:
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or name_of(block)
        name = long.get(b"L", name)
        flag = block[156:157]
        kind = _KINDS.get(flag)
        if kind is None:
            raise LayerError(name, f"it is of the type {flag!r}, which is not known")
        if flag == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # Before there was a type for them.
        target = records.get(b"linkpath") or block[157:257].partition(b"\0")[0]
        target = long.get(b"K", target) if kind in _LINKS else b""
        for what, text in (("name", name), ("target", target)):
            if len(text) > self._limits.path_bytes:
                raise LayerError(name, f"its {what} has {len(text)} bytes, which is too long")
        self._metadata.take(len(name) + len(target), name)
        if b"size" in records:
            size = decimal(records[b"size"], "size", name)
        member = Member(
            name=name,
            kind=kind,
            mode=number_at(block, 100, 8, "mode") & 0o7777,
            uid=id_at(block, 108, records, b"uid", name),
            gid=id_at(block, 116, records, b"gid", name),
            mtime=decimal(records[b"mtime"], "time", name)
            if b"mtime" in records
            else number_at(block, 136, 12, "time", negative=True),
            target=target,
            device=device_of(block, name) if kind in _DEVICES else (0, 0),
            xattrs=xattrs_of(records, self._limits.xattr_bytes, name) if records else (),
        )
        return self._with_data(member, block, size, records) if kind is Kind.FILE else member

    def _with_data(
        self, member: Member, block: bytes, size: int, records: dict[bytes, bytes]
    ) -> Member:
        name = member.name
        real, segments = size, None
        packed = size
        begin = self._at
        if block[156:157] == b"S":
            real = number_at(block, 483, 12, "size with holes")
            segments = self._old_map(block, name)
            begin = self._at
        elif holes := sparse_format(records, name):
            real = sparse_size(records, name)
            if holes == "1.0":
                segments, used = self._map(size, name)
                begin += used
                packed -= used
            else:
                segments = parse_map(records[b"GNU.sparse.map"].split(b","), name)
        if not 0 <= packed <= self._end - begin:
            raise LayerError(name, "the tar ends within its data")
        if segments is not None:
            segments = check_map(segments, real, packed, name)
        self._at = begin + packed + padding(packed)
        return member._replace(size=real, offset=begin, segments=segments)

    def _map(self, size: int, name: bytes) -> tuple[Segments, int]:
        """Read the map before a file's data; return it and its bytes with padding."""
        length = BLOCK
        while True:
            taken = take_map(self._read(self._at, min(length, size)), name)
            if taken is not None:
                self._metadata.take(taken[1], name)
                return taken[0], taken[1] + padding(taken[1])
            if length >= min(size, self._limits.extended_bytes):
                raise LayerError(name, "the map of its holes is not whole, or too long")
            length *= 2

    def _old_map(self, block: bytes, name: bytes) -> Segments:
        """Read the map in GNU's old header, and in those that it is continued in."""
        found = list(old_pieces(block, 386, 4))
        is_extended = block[482]
        read = 0
        while is_extended:
            more = self._read(self._at, BLOCK)
            read += BLOCK
            if len(more) < BLOCK or read > self._limits.extended_bytes:
                raise LayerError(name, "the map of its holes is not whole, or too long")
            self._metadata.take(BLOCK, name)
            found += old_pieces(more, 0, 21)
            is_extended = more[504]
            self._at += BLOCK
        return tuple(found)
