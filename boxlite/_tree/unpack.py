"""A tar of :mod:`.pack`, written to a file system that nobody gets out of.

The archive may come from a hostile guest. Every member is made relative to the open
directory that it belongs in, which is reached from the destination one component at a
time and through no link; what a name may be is checked before. So nothing is written
elsewhere, whatever the archive says, and whatever is there already.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from .format import Kind, Member, TarError
from .names import check_target, components, shown
from .reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Callable


_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Rules(NamedTuple):
    """What an archive may bring along.

    Attributes:
        into_what_is_there: Directories that exist are used; without it, all is new.
        replace: Files and links that exist are replaced; without it they are an error.
        owners: Its owners are kept; without it everything belongs to this process's user.
        set_ids: So are set-user-ID and set-group-ID bits.
        links_out: Symbolic links may lead out of the copy.
        max_bytes: The most that its files may have together, holes included.
        max_members: The most files, directories and links.
    """

    into_what_is_there: bool = False
    replace: bool = False
    owners: bool = False
    set_ids: bool = False
    links_out: bool = False
    max_bytes: int = (1 << 63) - 1
    max_members: int = 10_000_000


class _Directory(NamedTuple):
    """An open directory; the member that it is, if its attributes are to be set at the end."""

    name: bytes
    fd: int
    member: Member | None


class Unpacker:
    """Unpacks one archive as its bytes come in.

    Args:
        directory: An open directory, which stays the caller's.
        name: What the root of the archive is called in it.
        rules: What it may bring along.
        told: Called with each member when it is begun.
    """

    def __init__(
        self,
        directory: int,
        name: bytes,
        rules: Rules,
        told: Callable[[Member], object] = lambda _: None,
    ) -> None:
        self._base = directory
        self._root = name
        self._rules = rules
        self._told = told
        self._reader = TarReader()
        self._bytes = self._members = 0
        self._at = b""  # The member that an error of the system is about.
        self._path: list[_Directory] = []  # From the base down to where members are made.
        self._file: _File | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            TarError: The archive is refused.
            OSError: Something cannot be written; ``filename`` is its name in the archive.
        """
        try:
            for part in self._reader.feed(data):
                if isinstance(part, Member):
                    self._begin(part)
                else:
                    self._write(part)
        except OSError as error:
            error.filename, error.filename2 = self._at, None
            raise

    def finish(self) -> None:
        """Say that there is nothing more.

        Raises:
            TarError: It ended early, or had nothing in it.
            OSError: As for :meth:`feed`.
        """
        self._reader.finish()
        if not self._members:
            raise TarError(b"", "there is nothing in it")
        try:
            self._leave(0)
        except OSError as error:
            error.filename = self._at
            raise

    def close(self) -> None:
        """Close what is open. Idempotent."""
        if self._file is not None:
            os.close(self._file.fd)
            self._file = None
        while self._path:
            os.close(self._path.pop().fd)

    def _begin(self, member: Member) -> None:
        rules = self._rules
        self._members += 1
        self._bytes += member.size
        if self._members > rules.max_members:
            raise TarError(member.name, f"it is one more than {rules.max_members}")
        if self._bytes > rules.max_bytes:
            raise TarError(
                member.name,
                f"its {member.size} bytes make {self._bytes}, more than {rules.max_bytes}",
            )
        *above, name = self._parts(member.name, member)
        self._told(member)
        try:
            parent = self._enter(above, member.name)
            self._at = member.name
            match member.kind:
                case Kind.DIRECTORY:
                    self._make_directory(parent, name, member)
                case Kind.FILE:
                    self._make_way(parent, name)
                    fd = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
                    self._file = _File(fd, member)
                    self._end_file_if_complete()
                case Kind.SYMLINK:
                    if not self._rules.links_out:
                        check_target(member)
                    self._make_way(parent, name)
                    self._make_symlink(parent, name, member)
                case Kind.HARD_LINK:
                    self._make_link(parent, name, member)
        except FileExistsError:
            if self._rules.into_what_is_there:
                raise
            raise TarError(member.name, "it is there twice") from None

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._end_file_if_complete()

    def _parts(self, name: bytes, member: Member) -> list[bytes]:
        """Return the components of a path from the base."""
        return [self._root, *components(name, member.name)[1:]]

    def _enter(self, parts: list[bytes], member: bytes) -> int:
        """Return the open directory of a path; leave what is not on the way to it."""
        common = 0
        for directory, part in zip(self._path, parts, strict=False):
            if directory.name != part:
                break
            common += 1
        self._leave(common)
        for part in parts[common:]:
            self._path.append(_Directory(part, self._open(self._here, part, member), None))
        return self._here

    @property
    def _here(self) -> int:
        return self._path[-1].fd if self._path else self._base

    def _leave(self, depth: int) -> None:
        """Close the directories that are deeper, and set their attributes now that they are full.

        A member that comes later and belongs into one of them finds it as it was left.
        """
        while len(self._path) > depth:
            _, fd, member = self._path.pop()
            try:
                if member is not None:
                    self._at = member.name
                    self._set_attributes(fd, member)
            finally:
                os.close(fd)

    @staticmethod
    def _open(parent: int, name: bytes, member: bytes, flags: int = _DIRECTORY_FLAGS) -> int:
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            raise TarError(member, "its directory does not come before it") from None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise TarError(member, f"{shown(name)} on the way to it is no directory") from None

    def _make_directory(self, parent: int, name: bytes, member: Member) -> None:
        made: Member | None = member
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not (self._rules.into_what_is_there and stat.S_ISDIR(found.st_mode)):
                raise
            made = None
        self._path.append(_Directory(name, self._open(parent, name, member.name), made))

    def _make_way(self, parent: int, name: bytes) -> None:
        if self._rules.replace:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)

    def _make_symlink(self, parent: int, name: bytes, member: Member) -> None:
        os.symlink(member.target, name, dir_fd=parent)
        times = (member.mtime, member.mtime)
        os.utime(name, times, dir_fd=parent, follow_symlinks=False)
        if self._rules.owners:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def _make_link(self, parent: int, name: bytes, member: Member) -> None:
        *above, target = self._parts(member.target, member)
        fd = os.dup(self._base)
        try:
            for part in above:
                inner = self._open(fd, part, member.name, _WALK_FLAGS)
                os.close(fd)
                fd = inner
            with suppress(FileNotFoundError):
                found = os.stat(target, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    self._make_way(parent, name)
                    os.link(target, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
                    return
        finally:
            os.close(fd)
        raise TarError(member.name, f"it is a link to {shown(member.target)}, no file before it")

    def _end_file_if_complete(self) -> None:
        file = self._file
        if file is None or not file.complete:
            return
        self._file = None
        try:
            if file.member.segments is not None:
                os.ftruncate(file.fd, file.member.size)
            self._set_attributes(file.fd, file.member)
        finally:
            os.close(file.fd)

    def _set_attributes(self, fd: int, member: Member) -> None:
        if self._rules.owners:
            os.fchown(fd, member.uid, member.gid)
        mode = member.mode
        if not self._rules.set_ids:
            mode &= 0o1777
        os.fchmod(fd, mode)
        os.utime(fd, (member.mtime, member.mtime))


class _File:
    """A file while its data comes in.

    Attributes:
        complete: There is no more to come.
    """

    def __init__(self, fd: int, member: Member) -> None:
        self.fd = fd
        self.member = member
        segments = member.segments
        self._segments = [(0, member.size)] if segments is None else list(segments)
        self._segments.reverse()
        self._drop_empty()

    @property
    def complete(self) -> bool:
        return not self._segments

    def write(self, data: memoryview) -> None:
        while data:
            offset, size = self._segments.pop()
            written = os.pwrite(self.fd, data[:size], offset)
            data = data[written:]
            self._segments.append((offset + written, size - written))
            self._drop_empty()

    def _drop_empty(self) -> None:
        while self._segments and not self._segments[-1][1]:
            self._segments.pop()
