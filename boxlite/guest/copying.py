"""Files copied into the guest or out of it: what runs in the place of a command.

The agent does it itself. A process of its own would be one more change of process,
and two more copies of every byte, than the port has to have.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from boxlite._bulk import DATA_BYTES, Channel, Frame, Piece, Room
from boxlite._rpc._generated.boxlite.v1 import Copy, CopyReport, ExecExited, ExecResponse
from boxlite._tree.format import NAME_BYTES, Member, TarError
from boxlite._tree.pack import Span, pack
from boxlite._tree.unpack import Rules, Unpacker
from boxlite._wire import SKIPPED_NAMES, STDIN_WINDOW_BYTES

from .file_service import checked_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite._tree.pack import Parts

    from .bulk import Bulk
    from .place import Place

#: Data from this size on goes from the file to the port without a copy in the agent.
_SPLICE_BYTES: Final = 1 << 16
#: What is gathered before it is sent.
_GATHER_BYTES: Final = 1 << 17


class _Report:
    """What is said at the end."""

    def __init__(self) -> None:
        self._message = CopyReport()
        self._failed = False

    def skip(self, path: bytes, why: str) -> None:
        """Count what is left out."""
        self._message.skipped += 1
        if self._message.skipped <= SKIPPED_NAMES:
            self._message.skipped_names += b"%s: %s\0" % (path, why.encode())

    def fail(self, error: OSError | TarError) -> None:
        """Say why there is nothing more."""
        self._failed = True
        if isinstance(error, TarError):
            self._message.error, self._message.path = errno.EINVAL, error.name[:NAME_BYTES]
            self._message.problem = error.problem
            return
        self._message.error = error.errno or errno.EIO
        self._message.path = os.fsencode(error.filename or b"")[:NAME_BYTES]
        known = os.strerror(self._message.error)
        self._message.problem = "" if error.strerror == known else str(error.strerror)

    def exit(self) -> ExecResponse:
        """Return the last message of the call."""
        return ExecResponse(exited=ExecExited(exit_code=int(self._failed), copy=self._message))


class CopyOut:
    """Packs what is at a path.

    Args:
        path: What to pack.
        window: Bytes that may be sent before more are granted.
        place: Where the path is looked up.
    """

    def __init__(self, path: bytes, window: int, place: Place) -> None:
        self._path = path
        self._place = place
        self._member: Member | None = None
        self._window = window
        self._granted = asyncio.Event()
        self._gathered = bytearray()

    def hear(self, frame: Frame) -> None:
        """Take room for output, which is all that the host has to say."""
        if isinstance(frame, Room) and frame.channel is Channel.STDOUT:
            self._window += frame.size
            self._granted.set()

    async def report(self, send: Callable[[ExecResponse], Awaitable[None]], bulk: Bulk) -> None:
        """Send the tar, and what became of it."""
        report = _Report()
        try:
            with closing(pack(checked_path(self._path), report.skip)) as parts:
                going_on = True
                while going_on:
                    span, going_on = self._collect(parts)
                    await self._send_gathered(bulk)
                    if span is not None:
                        await self._send_span(bulk, span, self._member)
        except OSError as error:
            report.fail(error)
        await send(report.exit())

    def close(self) -> None:
        """Nothing is open between two sends."""

    def _collect(self, parts: Parts) -> tuple[Span | None, bool]:
        """Gather parts until there is enough to be sent, or data to be sent from its file.

        Returns:
            That data, and whether there is more to collect.
        """
        with self._place.entered():
            for part in parts:
                if isinstance(part, Member):
                    self._member = part
                elif isinstance(part, bytes):
                    self._gathered += part
                elif part.size < _SPLICE_BYTES:
                    self._gather(part, self._member)
                else:
                    return part, True
                if len(self._gathered) >= _GATHER_BYTES:
                    return None, True
        return None, False

    def _gather(self, span: Span, member: Member | None) -> None:
        data = os.pread(span.fd, span.size, span.offset)
        if len(data) < span.size:
            raise _shorter(member)
        self._gathered += data

    async def _send_gathered(self, bulk: Bulk) -> None:
        rest = memoryview(bytes(self._gathered))
        self._gathered.clear()
        while rest:
            size = min(await self._room(bulk), len(rest))
            bulk.buffer[:size] = rest[:size]
            bulk.send_buffer(Channel.STDOUT, size)
            self._window -= size
            rest = rest[size:]

    async def _send_span(self, bulk: Bulk, span: Span, member: Member | None) -> None:
        offset, rest = span.offset, span.size
        while rest:
            size = min(await self._room(bulk), rest)
            moved = os.splice(
                span.fd, bulk.pipe, size, offset_src=offset, flags=os.SPLICE_F_NONBLOCK
            )
            if not moved:
                raise _shorter(member)
            bulk.send_pipe(Channel.STDOUT, moved)
            self._window -= moved
            offset, rest = offset + moved, rest - moved

    async def _room(self, bulk: Bulk) -> int:
        """Wait until something may be sent, without an ``await``; return how much."""
        await asyncio.sleep(0)  # Others get their turn, however fast the port is.
        while True:
            while not self._window:
                self._granted.clear()
                await self._granted.wait()
            await bulk.wait_writable()
            if self._window:
                return min(self._window, DATA_BYTES)


class CopyIn:
    """Unpacks what comes on standard input.

    Args:
        copy: Where to, and how.
        place: Where the path is looked up.
    """

    def __init__(self, copy: Copy, place: Place) -> None:
        self._copy = copy
        self._report = _Report()
        self._over = False
        self._activity = asyncio.Event()
        self._owed = self._taken = 0
        self._fault: GRPCError | None = None
        self._directory = -1
        self._unpacker: Unpacker | None = None
        try:
            with place.entered():
                self._open(checked_path(copy.path))
        except OSError as error:
            self._fail(error)

    def _open(self, path: bytes) -> None:
        directory, name = os.path.split(os.path.realpath(path))
        if not name:
            raise OSError(errno.EINVAL, "it has no name", path)
        with suppress(FileExistsError):  # No directory: opening it says so better.
            os.makedirs(directory, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        rules = Rules(
            into_what_is_there=True,
            replace=self._copy.replace,
            owners=self._copy.keep_owners,
            set_ids=True,
            links_out=True,
        )
        self._unpacker = Unpacker(self._directory, name, rules)

    def hear(self, frame: Frame) -> None:
        """Unpack a piece of the tar."""
        if not isinstance(frame, Piece) or frame.channel is not Channel.STDIN:
            return
        self._owed += len(frame.data)
        if self._owed > STDIN_WINDOW_BYTES:
            self._fault = GRPCError(Status.INVALID_ARGUMENT, "the host sent more than was granted")
        elif not self._over and self._unpacker is not None:
            self._taken += len(frame.data)
            try:
                if frame.data:
                    self._unpacker.feed(frame.data)
                else:
                    self._unpacker.finish()
                    self._over = True
            except (OSError, TarError) as error:
                self._fail(error)
        self._activity.set()

    def _fail(self, error: OSError | TarError) -> None:
        self._report.fail(error)
        self._over = True
        self._activity.set()

    async def report(self, send: Callable[[ExecResponse], Awaitable[None]], bulk: Bulk) -> None:
        """Give room until all is unpacked; say what became of it.

        Raises:
            GRPCError: The host sent more than was granted.
        """
        while not self._over:
            await self._activity.wait()
            self._activity.clear()
            if self._fault is not None:
                raise self._fault
            if self._taken >= STDIN_WINDOW_BYTES // 4:
                bulk.grant(Channel.STDIN, self._taken)
                self._owed -= self._taken
                self._taken = 0
        await send(self._report.exit())

    def close(self) -> None:
        """Close what is open."""
        if self._unpacker is not None:
            self._unpacker.close()
            self._unpacker = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def copying(copy: Copy, window: int, place: Place) -> CopyIn | CopyOut:
    """Return what answers a request to copy."""
    return CopyOut(copy.path, window, place) if copy.out else CopyIn(copy, place)


def _shorter(member: Member | None) -> OSError:
    name = b"" if member is None else member.name
    return OSError(errno.EIO, "it became shorter while it was read", name)
