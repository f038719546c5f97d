"""The root file systems of images: one file for each stack of layers, made once.

What a root is made of is in its name, so images with the same layers share it. It is
made elsewhere and moved here whole, and never changes after that.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Changed whenever the same layers would give another file.
FORMAT: Final = 1
_SUFFIX: Final = ".squashfs"
_KEY_CHARACTERS: Final = 32

#: The magic number, and behind 36 more bytes how many the archive has: the beginning of a
#: squashfs 4.0 (Linux, fs/squashfs/squashfs_fs.h, struct squashfs_super_block).
_SUPERBLOCK: Final = struct.Struct("<4s36xQ")
_MAGIC: Final = b"hsqs"
#: tar2sqfs fills the file up to a multiple of it: readers read whole pages.
_PAD_BYTES: Final = 4096


def root_name(diff_ids: Sequence[str]) -> str:
    """Return the name of the root that layers make.

    Args:
        diff_ids: The digests of what is in them, the lowest first.
    """
    text = "\n".join([f"boxlite root {FORMAT}", *diff_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARACTERS] + _SUFFIX


@attrs.frozen
class Roots:
    """The roots of a home.

    Args:
        root: Their directory.
        tmp: Where they are made, on the same file system.
    """

    root: Path
    tmp: Path

    def path(self, name: str) -> Path:
        """Return where a root is, or would be."""
        return self.root / name

    def size(self, name: str) -> int | None:
        """Return the size of a root, or None if it is not there, or not all of it.

        Raises:
            OSError: It cannot be read.
        """
        try:
            # O_NONBLOCK: opening a fifo that somebody left there must not hang.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(self.path(name), flags)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size < _SUPERBLOCK.size:
                return None
            magic, used = _SUPERBLOCK.unpack(os.pread(fd, _SUPERBLOCK.size, 0))
        finally:
            os.close(fd)
        padded = -(-used // _PAD_BYTES) * _PAD_BYTES
        return found.st_size if magic == _MAGIC and found.st_size >= padded else None

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """Give a directory to work in; it goes with all that is in it.

        Raises:
            OSError: It cannot be made.
        """
        work = Path(tempfile.mkdtemp(prefix="root-", dir=self.tmp))
        try:
            yield work
        finally:
            # Whatever cannot be removed is wiped when a runtime starts.
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, made: Path, name: str) -> None:
        """Give a file, which is on the disk, its place as a root; durable on return.

        Raises:
            OSError: It could not be done.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.chmod(0o400)
        made.rename(self.path(name))
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """Return the names of all roots.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            return sorted(path.name for path in self.root.iterdir())
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> int:
        """Remove a root; return the bytes that this freed. Boxes that have it open go on.

        Raises:
            OSError: It cannot be removed.
        """
        path = self.path(name)
        freed = path.stat().st_size
        path.unlink()
        return freed
