"""Writing the archive format that Linux unpacks as its first root file system.

The format is cpio's "newc" (cpio(5); Documentation/driver-api/early-userspace/
buffer-format.rst in the kernel): a 110-byte header of hexadecimal fields, the
name, the data, each padded to four bytes. Archives written here are
reproducible: entries are sorted by nobody but the caller, times are zero, and
inode numbers count up.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_HEADER_BYTES: Final = 110
_FIELD_MAX: Final = 0xFFFF_FFFF


class CpioWriter:
    """Writes entries to a stream; everything belongs to root.

    A directory must be added before what is in it: the kernel makes none by
    itself.

    Args:
        out: Where to write; it is not closed.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        """Add a character device; an archive may hold one without root's help."""
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> None:
        """Write the entry that ends an archive."""
        self._inode = 0
        self._write(_TRAILER, inode=0, mode=0, links=1, data=b"", device=(0, 0))

    def _entry(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        name = path.lstrip("/")
        if not name or "\0" in name:
            raise ValueError(f"not a path for an archive: {path!r}")
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        self._write(name, inode=self._inode, mode=mode, links=links, data=data, device=device)

    def _write(
        self,
        name: str,
        *,
        inode: int,
        mode: int,
        links: int,
        data: bytes,
        device: tuple[int, int],
    ) -> None:
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file system
        # (major, minor), device of the node (major, minor), name length, checksum
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        if max(fields) > _FIELD_MAX:
            raise ValueError(f"{name} is too large for the archive format")
        header = _MAGIC + b"".join(b"%08X" % field for field in fields)
        self._out.write(_padded(header + encoded))
        self._out.write(_padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def read_cpio(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield the name, mode and data of each entry of a newc archive.

    Raises:
        ValueError: It is not one, or it is cut short.
    """
    place = 0
    while True:
        header = archive[place : place + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise ValueError(f"no cpio header at byte {place}")
        fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_BYTES, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = place + _HEADER_BYTES
        data_at = name_at + name_size + -(_HEADER_BYTES + name_size) % 4
        name = archive[name_at : name_at + name_size - 1].decode()
        data = archive[data_at : data_at + size]
        if len(data) < size:
            raise ValueError(f"{name} is cut short")
        if name == _TRAILER:
            return
        yield name, mode, data
        place = data_at + size + -size % 4
