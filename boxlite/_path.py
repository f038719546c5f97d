"""Paths in a box, in the manner of ``trio.Path``."""

from __future__ import annotations

import errno
import fnmatch
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from ._errors import InvalidOptionError
from ._wire import FILE_PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ._rpc.files import FileCalls, FileStat

T = TypeVar("T")


class Through(Protocol):
    """Makes one call about files, and tells a loss that is the VM's death as that."""

    async def __call__(self, what: Callable[[FileCalls], Awaitable[T]]) -> T:
        """Return what the call returns."""
        ...


#: What read_bytes() takes unless it is told otherwise: a guest's file can be endless.
READ_BYTES_DEFAULT: Final = 64 << 20
_NAMES_MAX: Final = 1_000_000


class BoxPath:
    """An absolute path in a box; made by :meth:`Box.path`.

    Its methods are those of ``trio.Path`` and raise the same: ``FileNotFoundError``
    and the other kinds of ``OSError`` for what the guest's kernel refuses. What a
    call to the guest raises besides is as for :meth:`Box.ping`.

    It is no ``os.PathLike``: nothing on the host must take it for a path of its own.

    Args:
        through: Makes a call.
        path: The path.

    Raises:
        InvalidOptionError: It is not absolute, or has a NUL in it.
    """

    def __init__(self, through: Through, path: str | PurePosixPath) -> None:
        if not isinstance(path, (str, PurePosixPath)):
            raise InvalidOptionError("path", path, "a str")
        pure = PurePosixPath(path)
        if not pure.is_absolute() or "\0" in str(pure):
            raise InvalidOptionError("path", str(path), "an absolute path, without NUL")
        self._through = through
        self._pure = pure
        self._bytes = os.fsencode(str(pure))

    def __str__(self) -> str:
        return str(self._pure)

    def __repr__(self) -> str:
        return f"<boxlite.BoxPath {str(self._pure)!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoxPath):
            return NotImplemented
        return self._pure == other._pure and self._through == other._through

    def __hash__(self) -> int:
        return hash(self._pure)

    def __truediv__(self, more: str) -> BoxPath:
        return BoxPath(self._through, self._pure / more)

    @property
    def name(self) -> str:
        """Its last part."""
        return self._pure.name

    @property
    def parent(self) -> BoxPath:
        """The path of its directory."""
        return BoxPath(self._through, self._pure.parent)

    async def read_bytes(self, *, max_bytes: int = READ_BYTES_DEFAULT) -> bytes:
        """Return the content of a regular file.

        Args:
            max_bytes: A file that has more is not read: EFBIG. Default 64 MiB.
        """
        data = bytearray()
        while piece := await self._read(len(data)):
            data += piece
            if len(data) > max_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self))
        return bytes(data)

    async def read_text(
        self,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        max_bytes: int = READ_BYTES_DEFAULT,
    ) -> str:
        """Return the content of a regular file, decoded."""
        return (await self.read_bytes(max_bytes=max_bytes)).decode(encoding, errors)

    def pieces(self) -> AsyncIterator[bytes]:
        """Give the content of a regular file piece by piece, however large it is."""
        return _Pieces(self._read)

    async def _read(self, offset: int) -> bytes:
        return await self._ask(lambda files: files.read(self._bytes, offset))

    async def write_bytes(self, data: bytes | bytearray | memoryview, *, mode: int = 0o666) -> int:
        """Replace the content of a regular file, made if it is not there; return its size.

        Cancelled, it has written some first part of the data.

        Args:
            data: The content.
            mode: The permissions of a new file, less the guest's umask.
        """
        rest = memoryview(data).cast("B")
        offset = 0
        while True:
            piece = bytes(rest[offset : offset + FILE_PIECE_BYTES])
            await self._write(offset, piece, mode)
            offset += len(piece)
            if offset >= len(rest):
                return offset

    async def write_text(self, text: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Replace the content of a regular file by encoded text; return its size in bytes."""
        return await self.write_bytes(text.encode(encoding, errors))

    async def _write(self, offset: int, piece: bytes, mode: int) -> None:
        create = offset == 0
        await self._ask(
            lambda files: files.write(self._bytes, offset, piece, create=create, mode=mode)
        )

    async def stat(self, *, follow_symlinks: bool = True) -> FileStat:
        """Return what is there."""
        return await self._ask(lambda files: files.stat(self._bytes, follow=follow_symlinks))

    async def exists(self) -> bool:
        """Tell whether something is there; a link to nothing is not."""
        return await self._found() is not None

    async def is_dir(self) -> bool:
        """Tell whether a directory is there, or a link to one."""
        found = await self._found()
        return found is not None and found.is_dir

    async def is_file(self) -> bool:
        """Tell whether a regular file is there, or a link to one."""
        found = await self._found()
        return found is not None and found.is_file

    async def _found(self) -> FileStat | None:
        try:
            return await self.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def iterdir(self) -> list[BoxPath]:
        """Return what is in a directory, sorted by name."""
        names: list[bytes] = []
        more = True
        while more:
            after = names[-1] if names else b""
            found, more = await self._list(after)
            names += found
            if len(names) > _NAMES_MAX:
                raise OSError(errno.EOVERFLOW, "more than a million names", str(self))
        return [self / os.fsdecode(name) for name in names]

    async def _list(self, after: bytes) -> tuple[tuple[bytes, ...], bool]:
        return await self._ask(lambda files: files.list(self._bytes, after))

    async def glob(self, pattern: str) -> list[BoxPath]:
        """Return what matches a pattern below this directory, sorted.

        Args:
            pattern: Relative; ``*``, ``?`` and ``[...]`` as in a shell, and ``**`` for
                this directory and all below it. Links to directories are not entered.
        """
        parts = PurePosixPath(pattern).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise InvalidOptionError("pattern", pattern, "a relative pattern without ..")
        found = [self]
        for part in parts:
            found = [path for start in found for path in await _matching(start, part)]
        return sorted(set(found), key=str)

    async def mkdir(
        self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Make a directory.

        Args:
            mode: Its permissions, less the guest's umask.
            parents: Make those above it too.
            exist_ok: A directory that is there already is fine.
        """
        try:
            await self._ask(lambda files: files.make_directory(self._bytes, mode))
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            await self.parent.mkdir(parents=True, exist_ok=True)
            await self.mkdir(mode, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not await self.is_dir():
                raise

    async def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove what is there, unless it is a directory."""
        try:
            await self._ask(lambda files: files.unlink(self._bytes))
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self) -> None:
        """Remove an empty directory."""
        await self._ask(lambda files: files.remove_directory(self._bytes))

    async def rename(self, target: str | BoxPath) -> BoxPath:
        """Give it another path in the box, replacing what is there; return that."""
        to = target if isinstance(target, BoxPath) else BoxPath(self._through, target)
        await self._ask(lambda files: files.rename(self._bytes, os.fsencode(str(to))))
        return to

    async def chmod(self, mode: int) -> None:
        """Set its permissions."""
        await self._ask(lambda files: files.set_mode(self._bytes, mode))

    async def _ask(self, what: Callable[[FileCalls], Awaitable[T]]) -> T:
        return await self._through(what)


class _Pieces:
    """The pieces of a file. No generator: one that is not read to its end would complain."""

    def __init__(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        self._read = read
        self._offset = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._read(self._offset)
        if not piece:
            raise StopAsyncIteration
        self._offset += len(piece)
        return piece


async def _matching(directory: BoxPath, part: str) -> list[BoxPath]:
    """Return what in a directory matches one part of a pattern."""
    if not (await directory.stat(follow_symlinks=False)).is_dir:
        return []
    entries = await directory.iterdir()
    if part != "**":
        return [path for path in entries if fnmatch.fnmatchcase(path.name, part)]
    below = [directory]
    for path in entries:
        below += await _matching(path, part)
    return below
