"""The header of a member of any type, with all that Linux keeps about it.

It is POSIX's pax (POSIX.1-2024, pax, "pax Header Block") with star's records for
extended attributes. The same member always has the same bytes: nothing is in them that
is not given.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from boxlite._tree.format import BLOCK, FIELD_MAX, MAGIC, NAME_FIELD, padding

if TYPE_CHECKING:
    from .root_tree import Xattrs

HARD_LINK: Final = b"1"

_ID_FIELD_MAX: Final = 8**7 - 1
_FLAGS: Final = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


def encode_header(
    name: bytes,
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    size: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Xattrs = (),
    flag: bytes = b"",
) -> bytes:
    """Return what precedes a member's data.

    Args:
        name: Its path in the archive, of a directory without a slash at the end.
        mode: Its type and permissions.
        uid: Its owner.
        gid: Its owner's group.
        mtime: When its content changed, in seconds since 1970, 0 or later.
        size: Bytes of data that follow.
        target: Where a link leads.
        device: Major and minor number.
        xattrs: Its extended attributes.
        flag: Its type, if it is not the mode's: :data:`HARD_LINK`.
    """
    flag = flag or _FLAGS[stat.S_IFMT(mode)]
    if flag == b"5":
        name += b"/"
    records = b""
    if len(name) > NAME_FIELD:
        records += _record(b"path", name)
    if len(target) > NAME_FIELD:
        records += _record(b"linkpath", target)
    for key, number, high in (
        (b"size", size, FIELD_MAX),
        (b"uid", uid, _ID_FIELD_MAX),
        (b"gid", gid, _ID_FIELD_MAX),
        (b"mtime", mtime, FIELD_MAX),
    ):
        if number > high:
            records += _record(key, b"%d" % number)
    for key, value in xattrs:
        records += _record(b"SCHILY.xattr." + key, value)
    extended = b""
    if records:
        extended = _block(b"pax", 0o644, 0, 0, len(records), 0, b"x", b"", (0, 0))
        extended += records + bytes(padding(len(records)))
    return extended + _block(
        name[:NAME_FIELD],
        stat.S_IMODE(mode),
        uid if uid <= _ID_FIELD_MAX else 0,
        gid if gid <= _ID_FIELD_MAX else 0,
        size if size <= FIELD_MAX else 0,
        mtime if mtime <= FIELD_MAX else 0,
        flag,
        target[:NAME_FIELD],
        device,
    )


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    start = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(NAME_FIELD, b"\0"),
        mode,
        uid,
        gid,
        size,
        mtime,
    )
    rest = flag + target.ljust(NAME_FIELD, b"\0") + MAGIC + bytes(64) + b"%07o\0%07o\0" % device
    rest = rest.ljust(BLOCK - len(start) - 8, b"\0")
    return b"%s%06o\0 %s" % (start, sum(start) + sum(rest) + 8 * ord(" "), rest)
