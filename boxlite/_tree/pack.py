"""A file, or a tree of files, as the parts of a tar."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from .format import END, SEGMENTS_MAX, Kind, Member, encode, padding
from .names import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Span(NamedTuple):
    """Some bytes of an open file, to be sent before the next part is asked for."""

    fd: int
    offset: int
    size: int


if TYPE_CHECKING:
    Parts = Generator[Member | bytes | Span, None, None]


def pack(path: bytes, skip: Callable[[bytes, str], object]) -> Parts:
    """Give the parts of a tar: each member, its header, the spans of its data, what fills them up.

    A link at the end of ``path`` is followed, no other one is. A second name of a file
    is a hard link. Close the iterator to have the file closed that is being read.

    Args:
        path: What to pack.
        skip: Told of what is left out, and why: what is neither file, directory nor
            link, and what vanished meanwhile.

    Raises:
        OSError: Something cannot be read; ``filename`` is its path.
    """
    packer = _Packer(skip)
    yield from packer.walk(os.path.realpath(path))
    yield END


class _Packer:
    def __init__(self, skip: Callable[[bytes, str], object]) -> None:
        self._skip = skip
        self._seen: dict[tuple[int, int], bytes] = {}

    def walk(self, path: bytes) -> Parts:
        waiting = [(path, ROOT)]
        while waiting:
            path, name = waiting.pop()
            try:
                found = os.lstat(path)
                entries = sorted(os.listdir(path)) if stat.S_ISDIR(found.st_mode) else []
                target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else b""
            except FileNotFoundError:
                if name == ROOT:
                    raise
                self._skip(path, "it vanished")
                continue
            member = self._member(name, found)
            if stat.S_ISREG(found.st_mode):
                yield from self._file(path, member, found)
            elif stat.S_ISDIR(found.st_mode):
                member = member._replace(kind=Kind.DIRECTORY, size=0)
                yield member
                yield encode(member)
                waiting += [(path + b"/" + each, name + b"/" + each) for each in reversed(entries)]
            elif target:
                member = member._replace(kind=Kind.SYMLINK, size=0, target=target)
                yield member
                yield encode(member)
            else:
                why = f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}"
                if name == ROOT:
                    raise OSError(errno.EINVAL, why, path)
                self._skip(path, why)

    def _file(self, path: bytes, member: Member, found: os.stat_result) -> Parts:
        if found.st_nlink > 1:
            first = self._seen.setdefault((found.st_dev, found.st_ino), member.name)
            if first != member.name:
                member = member._replace(kind=Kind.HARD_LINK, size=0, target=first)
                yield member
                yield encode(member)
                return
        try:
            fd = os.open(path, _FILE_FLAGS)
        except FileNotFoundError:
            self._seen.pop((found.st_dev, found.st_ino), None)
            self._skip(path, "it vanished")
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EAGAIN, "another file took its place", path)
            member = member._replace(size=found.st_size)
            if found.st_blocks * 512 < found.st_size:
                member = member._replace(segments=_segments(fd, found.st_size))
            yield member
            yield encode(member)
            spans = ((0, member.size),) if member.segments is None else member.segments
            for offset, size in spans:
                if size:
                    yield Span(fd, offset, size)
            if padding(member.data_size):
                yield bytes(padding(member.data_size))
        finally:
            os.close(fd)

    @staticmethod
    def _member(name: bytes, found: os.stat_result) -> Member:
        return Member(
            name=name,
            kind=Kind.FILE,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=found.st_mtime_ns // 1_000_000_000,
        )


def _segments(fd: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Return where a file has data, closed by an empty piece at its end; None if all over."""
    segments: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # No data from here on.
                break
            return None  # A file system that does not tell.
        if begin >= size:
            break
        segments.append((begin, at - begin))
        if len(segments) >= SEGMENTS_MAX:
            return None
    if segments == [(0, size)]:
        return None
    return (*segments, (size, 0))
