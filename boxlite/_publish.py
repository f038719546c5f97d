"""A copy that is complete, put where it is to be: all of it or nothing.

A copy is made beside its destination, under a name that nobody else has. Putting it in
place is a rename, or, where there is a directory already, one for each thing in it.
"""

from __future__ import annotations

import errno
import os
import stat
from secrets import token_hex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """A name beside a destination, for as long as something is made under it.

    Everything here blocks: call it in a thread.

    Args:
        destination: What the copy is to be. Its directory is made if it is not there.

    Attributes:
        directory: The open directory of the destination.
        name: The name in it under which the copy is to be made.

    Raises:
        OSError: Its directory cannot be used.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._made = [path for path in destination.parents if not os.path.lexists(path)]
        self.name = os.fsencode(f".{destination.name[:100]}.{token_hex(8)}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.directory = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def publish(self, *, replace: bool) -> None:
        """Put the copy in place.

        Args:
            replace: Replace files that are there.

        Raises:
            OSError: Something there is in the way, and nothing was put anywhere.
        """
        target = os.fsencode(self._destination.name)
        ours = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        theirs = _stat(target, self.directory)
        if theirs is None or not (stat.S_ISDIR(ours.st_mode) and stat.S_ISDIR(theirs.st_mode)):
            _check(ours, theirs, os.fsencode(self._destination), replace=replace)
            os.rename(self.name, target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        else:
            mode = stat.S_IMODE(ours.st_mode)
            os.chmod(self.name, mode | stat.S_IRWXU, dir_fd=self.directory)
            source = os.open(self.name, _DIRECTORY_FLAGS, dir_fd=self.directory)
            try:
                into = os.open(target, _DIRECTORY_FLAGS, dir_fd=self.directory)
                try:
                    where = os.fsencode(self._destination)
                    _merge(source, into, where, replace=replace, act=False)
                    _merge(source, into, where, replace=replace, act=True)
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
        for each in os.listdir(fd):
            remove(fd, os.fsencode(each))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def _merge(source: int, into: int, where: bytes, *, replace: bool, act: bool) -> None:
    """Move what is in one directory to another one, or only see whether that can be done."""
    for each in os.listdir(source):
        name = os.fsencode(each)
        path = where + b"/" + name
        ours = os.stat(name, dir_fd=source, follow_symlinks=False)
        theirs = _stat(name, into)
        if theirs is not None and stat.S_ISDIR(ours.st_mode) and stat.S_ISDIR(theirs.st_mode):
            if not os.access(name, os.W_OK | os.X_OK, dir_fd=into):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
            with_access = stat.S_IMODE(ours.st_mode) | stat.S_IRWXU
            os.chmod(name, with_access, dir_fd=source)
            below = os.open(name, _DIRECTORY_FLAGS, dir_fd=source)
            try:
                there = os.open(name, _DIRECTORY_FLAGS, dir_fd=into)
                try:
                    _merge(below, there, path, replace=replace, act=act)
                finally:
                    os.close(there)
            finally:
                os.close(below)
            continue
        _check(ours, theirs, path, replace=replace)
        if act:
            _move(name, ours, source, into)


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
    raise OSError(number, os.strerror(number), os.fsdecode(path))


def _stat(name: bytes, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
