"""A copy that is complete, put where it is to be.

A copy is made beside its destination, under a name that nobody else has. Putting it in
place is a rename, or, where there is a directory already, one for each thing in it, after
a look at whether anything is in the way.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PARENT_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How much of a destination's name that of its copy has.
_NAME_BYTES: Final = 200
#: How many names of a directory are held at once: the guest chose how many there are.
_BATCH: Final = 1000


class Staging:
    """A name beside a destination, for as long as something is made under it.

    Everything here blocks: call it in a thread.

    Args:
        destination: What the copy is to be; if it is a link, what that leads to. Its
            directory is made if it is not there.

    Attributes:
        directory: The open directory of the destination.
        name: The name in it under which the copy is to be made.

    Raises:
        OSError: Its directory cannot be used.
    """

    def __init__(self, destination: Path) -> None:
        destination = destination.resolve()
        self._destination = destination
        self._made = [path for path in destination.parents if not os.path.lexists(path)]
        name = os.fsencode(destination.name)[:_NAME_BYTES]
        self.name = b".%s.%s" % (name, token_hex(8).encode())
        try:
            with suppress(FileExistsError):  # No directory: opening it says so better.
                destination.parent.mkdir(parents=True, exist_ok=True)
            self.directory = os.open(destination.parent, _PARENT_FLAGS)
        except OSError:
            self._remove_made()
            raise

    def publish(self, *, replace: bool) -> None:
        """Put the copy in place.

        Args:
            replace: Replace files that are there.

        Raises:
            OSError: Something there is in the way. That is looked for before anything is
                moved into a directory that is there; what only shows then stays moved.
        """
        target, here = os.fsencode(self._destination.name), self.directory
        ours = os.stat(self.name, dir_fd=here, follow_symlinks=False)
        theirs = _stat(target, here)
        where = os.fsencode(self._destination)
        if not _are_directories(ours, theirs):
            _check(ours, theirs, where, replace=replace)
            os.rename(self.name, target, src_dir_fd=here, dst_dir_fd=here)
        else:
            os.chmod(self.name, stat.S_IRWXU, dir_fd=here)
            source = os.open(self.name, _DIRECTORY_FLAGS, dir_fd=here)
            try:
                into = os.open(target, _DIRECTORY_FLAGS, dir_fd=here)
                try:
                    _check_merge(source, into, where, replace=replace)
                    _merge(source, into)
                finally:
                    os.close(into)
            finally:
                os.close(source)
        self._made.clear()

    def close(self) -> None:
        """Remove what is left under the name, and the directories that were made for nothing."""
        try:
            remove(self.directory, self.name)
        finally:
            os.close(self.directory)
            self._remove_made()

    def _remove_made(self) -> None:
        for path in self._made:
            try:
                path.rmdir()
            except OSError:
                return  # Somebody else uses it by now.


def remove(directory: int, name: bytes) -> None:
    """Remove what has a name in an open directory, with all in it, if it is there.

    Follows no link, and is not stopped by permissions that a guest has chosen.

    Raises:
        OSError: It cannot be removed.
    """
    found = _stat(name, directory)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    if found.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=directory)
    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
    try:
        for name_below in _batches(fd):
            remove(fd, name_below)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def _batches(directory: int) -> Iterator[bytes]:
    """Give the names in a directory, of which each is gone when the next one is asked for."""
    while True:
        with os.scandir(directory) as entries:
            names = [os.fsencode(entry.name) for entry in islice(entries, _BATCH)]
        if not names:
            return
        yield from names


def _check_merge(source: int, into: int, where: bytes, *, replace: bool) -> None:
    """See that everything in one directory can be moved into another one.

    Raises:
        OSError: It cannot.
    """
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=into):
        raise _error(errno.EACCES, where)
    if os.fstat(source).st_dev != os.fstat(into).st_dev:
        raise _error(errno.EXDEV, where)
    with os.scandir(source) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            path = where + b"/" + name
            ours, theirs = entry.stat(follow_symlinks=False), _stat(name, into)
            if _are_directories(ours, theirs):
                with _both(name, ours, source, into) as (below, there):
                    _check_merge(below, there, path, replace=replace)
            else:
                _check(ours, theirs, path, replace=replace)


def _merge(source: int, into: int) -> None:
    """Move everything in one directory into another one."""
    for name in _batches(source):
        ours = os.stat(name, dir_fd=source, follow_symlinks=False)
        if _are_directories(ours, _stat(name, into)):
            with _both(name, ours, source, into) as (below, there):
                _merge(below, there)
            os.rmdir(name, dir_fd=source)
        else:
            _move(name, ours, source, into)


def _are_directories(ours: os.stat_result, theirs: os.stat_result | None) -> bool:
    return theirs is not None and stat.S_ISDIR(ours.st_mode) and stat.S_ISDIR(theirs.st_mode)


@contextmanager
def _both(name: bytes, ours: os.stat_result, source: int, into: int) -> Iterator[tuple[int, int]]:
    """Open a directory of the copy, whatever its permissions are, and the one of its name."""
    if ours.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=source)
    below = os.open(name, _DIRECTORY_FLAGS, dir_fd=source)
    try:
        there = os.open(name, _DIRECTORY_FLAGS, dir_fd=into)
        try:
            yield below, there
        finally:
            os.close(there)
    finally:
        os.close(below)


def _move(name: bytes, found: os.stat_result, source: int, into: int) -> None:
    # A directory that changes places must be writable itself, for its "..".
    locked = stat.S_ISDIR(found.st_mode) and not found.st_mode & stat.S_IWUSR
    if locked:
        os.chmod(name, stat.S_IMODE(found.st_mode) | stat.S_IWUSR, dir_fd=source)
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=into)
    if locked:
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=into)


def _check(
    ours: os.stat_result, theirs: os.stat_result | None, path: bytes, *, replace: bool
) -> None:
    """See whether what is there may be replaced by ours; two directories are another matter."""
    if theirs is None:
        return
    if stat.S_ISDIR(theirs.st_mode):
        number = errno.EISDIR
    elif stat.S_ISDIR(ours.st_mode):
        number = errno.ENOTDIR
    elif not replace:
        number = errno.EEXIST
    else:
        return
    raise _error(number, path)


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))


def _stat(name: bytes, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
