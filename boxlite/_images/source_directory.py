"""The files of an OCI layout that is a directory.

Nobody knows where it came from, so no link in it is followed, and nothing is read that
is not a plain file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import attrs

from .source_piece import Piece, SourceError, UnreadableError, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A named pipe would be waited for, and a terminal would become this program's.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@attrs.frozen
class DirectoryFiles:
    """The files below an open directory.

    Args:
        fd: The directory, which the caller closes.
    """

    fd: int

    def has(self, name: str) -> bool:
        """Tell whether there is a file of that name, of whatever kind.

        Raises:
            SourceError: It leads out, or what should be a directory on the way to it is none.
            UnreadableError: The directory cannot be read.
        """
        with ExitStack() as opened:
            try:
                parent, last = self._descend(name, opened)
                os.stat(last, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return False
            except OSError as exc:
                raise _explain(exc, name) from exc
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[Piece]:
        """Give a file, which stays open while the block runs.

        Args:
            name: Its path in the directory, of which no part is ``..``.

        Raises:
            SourceError: It is not there, a link, or no plain file.
            UnreadableError: It cannot be read.
        """
        with ExitStack() as opened:
            try:
                parent, last = self._descend(name, opened)
                fd = os.open(last, _FILE_FLAGS, dir_fd=parent)
            except OSError as exc:
                raise _explain(exc, name) from exc
            opened.callback(os.close, fd)
            with reading():
                found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SourceError(f"{name} in it is not a file")
            yield Piece(fd, 0, found.st_size)

    def _descend(self, name: str, opened: ExitStack) -> tuple[int, str]:
        """Open the directory that a file is in; return it and the file's last name."""
        parent = self.fd
        *directories, last = parts = name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            raise SourceError(f"the name {name[:100]!r} leads out of it")
        for directory in directories:
            parent = os.open(directory, _DIRECTORY_FLAGS, dir_fd=parent)
            opened.callback(os.close, parent)
        return parent, last


def _explain(exc: OSError, name: str) -> Exception:
    if exc.errno == errno.ENOENT:
        return SourceError(f"it has no {name}")
    # A link where a directory should be is ENOTDIR, a socket ENXIO.
    if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return SourceError(f"{name} in it is a link, or not a file")
    return UnreadableError(f"{name}: {exc.strerror}")
