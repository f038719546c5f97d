"""The calls about files: each a question with a deadline, and an answer that is checked."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final

import attrs

from boxlite._errors import GuestProtocolError
from boxlite._wire import FILE_PIECE_BYTES, NAMES_AT_ONCE

from ._generated.boxlite import v1 as wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import betterproto2

    Call = Callable[[str, betterproto2.Message, type[Any], float], Awaitable[Any]]

#: How long one call may take: half a megabyte at most is read or written.
SECONDS: Final = 30.0
_NAME_BYTES: Final = 255  # NAME_MAX of Linux


@attrs.frozen(kw_only=True)
class FileStat:
    """What is at a path, as stat(2) has it.

    Args:
        mode: Type and permissions, for the functions of the module ``stat``.
        size: Bytes.
        uid: The owner's user id.
        gid: The owner's group id.
        links: How many names it has.
        modified: When its content changed, in nanoseconds since 1970.
    """

    mode: int
    size: int
    uid: int
    gid: int
    links: int
    modified: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class FileCalls:
    """Asks one guest about its files.

    Every method raises ``OSError`` when the guest's kernel refuses, with the path,
    and what every call raises when there is no sound answer.

    Args:
        call: Makes a call: route, question, type of the answer, seconds.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    async def read(self, path: bytes, offset: int, size: int = FILE_PIECE_BYTES) -> bytes:
        """Return a piece of a regular file; ``b""`` at its end."""
        request = wire.ReadRequest(path=path, offset=offset, size=size)
        answer = await self._ask("Read", request, wire.ReadResponse, path)
        data: bytes = answer.data
        if len(data) > size:
            raise GuestProtocolError(f"Read: {len(data)} bytes came, and {size} were asked for")
        return data

    async def write(
        self, path: bytes, offset: int, data: bytes, *, create: bool, mode: int
    ) -> None:
        """Write a piece of a regular file, which is made or emptied first if asked for."""
        request = wire.WriteRequest(path=path, offset=offset, data=data, create=create, mode=mode)
        await self._ask("Write", request, wire.WriteResponse, path)

    async def stat(self, path: bytes, *, follow: bool) -> FileStat:
        """Return what is at a path."""
        request = wire.StatRequest(path=path, follow=follow)
        answer = await self._ask("Stat", request, wire.StatResponse, path)
        return FileStat(
            mode=answer.mode,
            size=answer.size,
            uid=answer.uid,
            gid=answer.gid,
            links=answer.links,
            modified=answer.modified_ns,
        )

    async def list(self, path: bytes, after: bytes) -> tuple[tuple[bytes, ...], bool]:
        """Return the names in a directory after one of them, and whether there are more."""
        request = wire.ListRequest(path=path, after=after)
        answer = await self._ask("List", request, wire.ListResponse, path)
        *names, rest = answer.names.split(b"\0")
        if rest:
            raise GuestProtocolError(f"List: {rest[:50]!r} has no end")
        if len(names) > NAMES_AT_ONCE:
            raise GuestProtocolError(f"List: {len(names)} names came at once")
        for name in names:
            # In order, so that no guest can have us ask for ever about the same names.
            if name <= after:
                raise GuestProtocolError("List: the names are not in order")
            if not 1 <= len(name) <= _NAME_BYTES or b"/" in name:
                raise GuestProtocolError(f"List: {name[:50]!r} is not a name")
            if name in {b".", b".."}:
                raise GuestProtocolError(f"List: {name!r} is not the name of an entry")
            after = name
        if answer.more and not names:
            raise GuestProtocolError("List: there are more names, and none came")
        return tuple(names), answer.more

    async def make_directory(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        await self._change(path, wire.ChangeRequest(path=path, make_directory=mode))

    async def unlink(self, path: bytes) -> None:
        """Remove what is not a directory."""
        await self._change(path, wire.ChangeRequest(path=path, unlink=wire.Unlink()))

    async def remove_directory(self, path: bytes) -> None:
        """Remove an empty directory."""
        request = wire.ChangeRequest(path=path, remove_directory=wire.RemoveDirectory())
        await self._change(path, request)

    async def rename(self, path: bytes, to: bytes) -> None:
        """Give something another path, replacing what is there."""
        await self._change(path, wire.ChangeRequest(path=path, rename_to=to))

    async def set_mode(self, path: bytes, mode: int) -> None:
        """Set permissions."""
        await self._change(path, wire.ChangeRequest(path=path, set_mode=mode))

    async def _change(self, path: bytes, request: wire.ChangeRequest) -> None:
        await self._ask("Change", request, wire.ChangeResponse, path)

    async def _ask(
        self, name: str, request: betterproto2.Message, answer_type: type[Any], path: bytes
    ) -> Any:  # noqa: ANN401 - a generated message, checked by whoever asked
        answer = await self._call(f"Files/{name}", request, answer_type, SECONDS)
        if answer.error:
            if answer.error not in errno.errorcode:
                raise GuestProtocolError(f"{name}: {answer.error} is not an errno")
            raise OSError(answer.error, os.strerror(answer.error), os.fsdecode(path))
        return answer
