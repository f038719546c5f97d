"""The tar that host and guest send each other: what a member is, and its header. No I/O.

It is POSIX's ustar with pax headers (POSIX.1-2024, pax, "ustar Interchange Format"
and "pax Header Block") where a field of ustar is too small, and GNU's sparse format
1.0 (GNU tar manual, "PAX Format, Version 1.0") for files with holes. Any tar reads it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

BLOCK: Final = 512
#: What follows the last member.
END: Final = bytes(2 * BLOCK)
#: The longest name or target: PATH_MAX of Linux.
NAME_BYTES: Final = 4096
#: Pieces of data that a file with holes may have.
SEGMENTS_MAX: Final = 8192

NAME_FIELD: Final = 100
PREFIX_FIELD: Final = 155
MAGIC: Final = b"ustar\x0000"
#: The most that the fields for a size or a time, and for an id, have room for.
FIELD_MAX: Final = 8**11 - 1
_ID_FIELD_MAX: Final = 8**7 - 1


class Kind(enum.Enum):
    """What a member is, by its type flag."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    DIRECTORY = b"5"


class Member(NamedTuple):
    """One file, directory or link.

    Attributes:
        name: Its path in the archive, without a slash at the end.
        kind: What it is.
        mode: Its permissions.
        uid: Its owner.
        gid: Its owner's group.
        size: Bytes of a file, holes included.
        mtime: When its content changed, in whole seconds since 1970.
        target: Where a symbolic link leads; the name of the member that is linked to.
        segments: Offset and length of each piece of data of a file with holes.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: bytes = b""
    segments: tuple[tuple[int, int], ...] | None = None

    @property
    def data_size(self) -> int:
        """The bytes of it that are in the archive."""
        if self.segments is None:
            return self.size
        return sum(length for _, length in self.segments)


class TarError(Exception):
    """An archive that is refused.

    Args:
        name: The member that is at fault; empty if it is none.
        problem: What is wrong, for a person.
    """

    def __init__(self, name: bytes, problem: str) -> None:
        super().__init__(problem)
        self.name = name
        self.problem = problem


def padding(size: int) -> int:
    """Return how many zeros follow so many bytes of data."""
    return -size % BLOCK


def encode(member: Member) -> bytes:
    """Return what precedes a member's data."""
    records: dict[str, bytes] = {}
    size, name = member.data_size, member.name
    content = b""
    if member.segments is not None:
        numbers = [len(member.segments), *(each for pair in member.segments for each in pair)]
        content = b"".join(b"%d\n" % number for number in numbers)
        content += bytes(padding(len(content)))
        size += len(content)
        records["GNU.sparse.major"], records["GNU.sparse.minor"] = b"1", b"0"
        records["GNU.sparse.name"] = name
        records["GNU.sparse.realsize"] = b"%d" % member.size
    if member.kind is Kind.DIRECTORY:
        name += b"/"
    prefix, short = _split(name)
    if short is None:
        short = name[:NAME_FIELD]
        records.setdefault("path", name)
    if len(member.target) > NAME_FIELD:
        records["linkpath"] = member.target
    if size > FIELD_MAX:
        records["size"] = b"%d" % size
    for key, number in (("uid", member.uid), ("gid", member.gid)):
        if number > _ID_FIELD_MAX:
            records[key] = b"%d" % number
    pax = b"".join(_record(key, value) for key, value in records.items())
    extended = b""
    if pax:
        about = _header(Member(b"pax", Kind.FILE, size=len(pax)), b"x", b"pax", b"", len(pax))
        extended = about + pax + bytes(padding(len(pax)))
    return extended + _header(member, member.kind.value, short, prefix, size) + content


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Divide a name between the two fields that ustar has for it; None if it does not fit."""
    if len(name) <= NAME_FIELD:
        return b"", name
    slash = name.find(b"/", len(name) - NAME_FIELD - 1, len(name) - 1)
    if 0 < slash <= PREFIX_FIELD:
        return name[:slash], name[slash + 1 :]
    return b"", None


def _record(key: str, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key.encode(), value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def _header(member: Member, flag: bytes, name: bytes, prefix: bytes, size: int) -> bytes:
    start = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(NAME_FIELD, b"\0"),
        member.mode,
        member.uid if member.uid <= _ID_FIELD_MAX else 0,
        member.gid if member.gid <= _ID_FIELD_MAX else 0,
        size if size <= FIELD_MAX else 0,
        min(max(member.mtime, 0), FIELD_MAX),
    )
    target = member.target[:NAME_FIELD].ljust(NAME_FIELD, b"\0")
    rest = flag + target + MAGIC + bytes(64) + b"0000000\x000000000\0" + prefix
    rest = rest.ljust(BLOCK - len(start) - 8, b"\0")
    return b"%s%06o\0 %s" % (start, sum(start) + sum(rest) + 8 * ord(" "), rest)
