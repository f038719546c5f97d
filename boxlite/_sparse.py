"""Copying a file with its holes, within the kernel."""

from __future__ import annotations

import errno
import os


def copy_sparse(source: int, target: int) -> None:
    """Copy all of a file's data to the same places of another, and make it as large.

    The blocks are shared where the file system can do that. Blocks for as long as the
    data takes: some hundred MB a second at the least.

    Args:
        source: An open file.
        target: An empty file, open for writing.

    Raises:
        OSError: There is no room, or the file cannot be read.
    """
    size = os.fstat(source).st_size
    os.truncate(target, size)
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if os.fstat(source).st_size < size:
                raise _shorter() from None
            return  # Only a hole is left.
        at = os.lseek(source, begin, os.SEEK_HOLE)
        while begin < at:
            copied = os.copy_file_range(source, target, at - begin, begin, begin)
            if not copied:
                raise _shorter()
            begin += copied


def _shorter() -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was copied")
