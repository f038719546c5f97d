"""One command in the guest, as the Trio side drives it.

An asyncio coroutine receives the guest's messages for as long as the command lasts.
It and the methods here meet in plain data, a :class:`~.conversation.Conversation`:
both event loops run in one thread. The bytes of the command's streams, and all that
is said to it while it runs, do not pass through asyncio: see :mod:`boxlite._bulk`.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import trio
from grpclib.const import Cardinality

from boxlite._bulk import (
    DATA_BYTES,
    Channel,
    Frame,
    Piece,
    Room,
    data_header,
    resize_frame,
    room_frame,
    signal_frame,
)
from boxlite._errors import (
    BoxliteError,
    GuestProtocolError,
    GuestTimeoutError,
    InvalidOptionError,
    StateError,
)
from boxlite._scopes import open_nursery_unwrapped

from ._generated.boxlite.v1 import ExecResponse, ExecStart
from .channel import stream_number
from .conversation import Conversation, Phase
from .convert import SIGNAL_MAX, ExecExited, exec_event
from .lost import fresh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from .link import Link

#: How long the guest may take to start a command, or to refuse it.
START_SECONDS: Final = 30.0
#: How long it may take to end the call after its last word.
END_SECONDS: Final = 5.0

_ROUTE: Final = "/boxlite.v1.Execution/Exec"


class RawExecution:
    """A command in the guest, from its start to its exit.

    Made by :meth:`GuestSession.execute`. Every method is a checkpoint and may
    be cancelled at any time: that loses no data and disturbs no other call.
    When the conversation with the guest fails, every method raises the cause,
    as soon as the output that arrived before has been taken.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._talk = Conversation()
        self._changed = trio.lowlevel.ParkingLot()
        self._patience = trio.CancelScope()
        self._stdin_ended = False
        self._in_use: set[Channel] = set()
        self._call_number = 0  # None has this one: the call has not been made.

    async def wait_started(self) -> int:
        """Wait until the command runs; return its process id in the guest.

        Raises:
            ExecStartError: The guest could not start it.
            GuestTimeoutError: The guest did neither in time.
        """
        await self._until(lambda: self._talk.started is not None)
        assert self._talk.started is not None
        return self._talk.started.pid

    async def wait(self) -> ExecExited:
        """Wait until the command has ended. Its output may still lie unread here."""
        await self._until(lambda: self._talk.phase is Phase.ENDED)
        assert self._talk.exited is not None
        return self._talk.exited

    async def receive(self, channel: Channel, max_bytes: int = DATA_BYTES) -> bytes:
        """Return some output as soon as there is any; ``b""`` when the command has ended."""
        return b"".join(await self.receive_pieces(channel, max_bytes))

    async def receive_pieces(
        self, channel: Channel, max_bytes: int = DATA_BYTES, *, at_least: int = 1
    ) -> list[memoryview]:
        """Return some output in the pieces that it came in; none when the command has ended.

        Taking output gives the guest room to send more. A stream from which
        nobody takes any stops after a window of 2 MiB, and only that stream.

        Args:
            channel: Standard output or standard error.
            max_bytes: The most to return. Default 1 MiB.
            at_least: What to wait for, unless the command ends before: 1 MiB at the most,
                since the guest may have been granted no more than that. Default 1 byte.

        Raises:
            trio.BusyResourceError: Another task is receiving from this stream.
        """
        if max_bytes < 1:
            raise InvalidOptionError("max_bytes", max_bytes, "at least 1")
        inbox = self._talk.inboxes[channel]
        with self._sole_user(channel):
            await self._until(lambda: len(inbox) >= at_least or self._talk.phase is Phase.ENDED)
            data = inbox.take(max_bytes)
        if inbox.grant_due and self._call_number and not self._talk.over:
            frame = room_frame(self._call_number, channel, inbox.grant())
            self._link.channel.write(frame)
        return data

    async def send_stdin(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the command's standard input, as the guest has room for them.

        Returns when the last of them is on its way. Cancelled, it has sent some
        first part of the data.

        Raises:
            trio.ClosedResourceError: Standard input was closed here.
            trio.BrokenResourceError: The command has ended.
            trio.BusyResourceError: Another task is sending.
        """
        rest = memoryview(data).cast("B")
        with self._sole_user(Channel.STDIN):
            while True:
                await self._link.channel.wait_writable()
                if self._stdin_ended:
                    raise trio.ClosedResourceError("standard input was closed")
                if self._talk.phase is Phase.ENDED:
                    raise trio.BrokenResourceError("the command has ended")
                if size := self._talk.claim_stdin(len(rest)):
                    header = data_header(self._call_number, Channel.STDIN, size)
                    self._link.channel.write(header, rest[:size])
                    rest = rest[size:]
                elif rest or self._talk.failure is not None:
                    await self._change()
                if not rest:
                    return

    async def close_stdin(self) -> None:
        """End the command's standard input. Idempotent; after its exit it does nothing."""
        await self._until_told()
        if not self._stdin_ended:
            self._stdin_ended = True
            self._tell(data_header(self._call_number, Channel.STDIN, 0))
            self._changed.unpark_all()

    async def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group. After its exit it does nothing.

        It is in order with standard input: what was sent before is there before.

        Args:
            number: 1 to 64.
        """
        if not 1 <= number <= SIGNAL_MAX:
            raise InvalidOptionError("signal", number, f"1 to {SIGNAL_MAX}")
        await self._until_told()
        self._tell(signal_frame(self._call_number, number))

    async def resize(self, rows: int, columns: int) -> None:
        """Give the command's terminal another size. After its exit it does nothing.

        It is in order with standard input, too.

        Args:
            rows: 1 to 65,535.
            columns: 1 to 65,535.
        """
        for name, value in (("rows", rows), ("columns", columns)):
            if not 1 <= value <= 0xFFFF:
                raise InvalidOptionError(name, value, "1 to 65535")
        await self._until_told()
        self._tell(resize_frame(self._call_number, rows, columns))

    async def _until_told(self) -> None:
        """Wait until the command has started and there is room to tell it something."""
        await self.wait_started()
        await self._link.channel.wait_writable()
        if self._talk.failure is not None:
            raise fresh(self._talk.failure)

    def _tell(self, frame: bytes) -> None:
        """Send a frame, unless the command has ended."""
        if self._talk.phase is Phase.RUNNING:
            self._link.channel.write(frame)

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Wait for a state of the conversation; raise if it fails before. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not ready():
            await self._change()

    async def _change(self) -> None:
        if self._talk.failure is not None:
            raise fresh(self._talk.failure)
        await self._changed.park()

    @contextmanager
    def _sole_user(self, channel: Channel) -> Iterator[None]:
        if channel in self._in_use:
            name = channel.name.lower()
            raise trio.BusyResourceError(f"another task is using this command's {name}")
        self._in_use.add(channel)
        try:
            yield
        finally:
            self._in_use.remove(channel)

    async def run(self, request: ExecStart) -> None:
        """Talk to the guest until the command has ended. For :func:`open_execution` alone.

        Nothing that the guest does makes it raise: the other methods do.
        Cancelling it ends the call, whereupon the guest kills the command.
        """
        self._patience.deadline = trio.current_time() + START_SECONDS
        try:
            with self._patience:
                await self._link.run("exec", self._receive_all, request)
            if self._patience.cancelled_caught:
                self._talk.fail(self._impatience())
        except BoxliteError as error:
            self._talk.fail(error)
        finally:
            self._talk.fail(StateError("use the execution", required="open", actual="left"))
            self._changed.unpark_all()

    def _impatience(self) -> GuestTimeoutError:
        if self._talk.phase is Phase.STARTING:
            return GuestTimeoutError(
                f"exec: the guest neither started nor refused the command in {START_SECONDS:g} s"
            )
        return GuestTimeoutError(
            f"exec: the guest said how the command ended and kept the call open {END_SECONDS:g} s"
        )

    async def _receive_all(self, request: ExecStart) -> None:
        """Start the command and hear the guest to the end. Runs in asyncio."""
        async with self._link.channel.request(
            _ROUTE, Cardinality.UNARY_STREAM, ExecStart, ExecResponse
        ) as call:
            await call.send_request()
            self._call_number = stream_number(call)
            with self._link.channel.bulk(self._call_number, self._hear_bulk):
                await call.send_message(request, end=True)
                while (message := await call.recv_message()) is not None:
                    self._talk.hear(exec_event(message))
                    self._adjust_patience()
                    self._changed.unpark_all()
        self._talk.hear_end()

    def _hear_bulk(self, frame: Frame) -> None:
        """Take what the guest sends beside its messages."""
        try:
            match frame:
                case Piece(_, channel, data):
                    self._talk.hear_data(channel, data)
                case Room(_, channel, size):
                    self._talk.hear_room(channel, size)
                case _:
                    kind = type(frame).__name__.lower()
                    raise GuestProtocolError(f"the guest sent a {kind}, which it only gets")
        except GuestProtocolError as error:
            self._talk.fail(error)
            self._patience.cancel()
        self._changed.unpark_all()

    def _adjust_patience(self) -> None:
        if self._talk.phase is Phase.LAST_WORD:
            self._patience.deadline = trio.current_time() + END_SECONDS
        else:
            self._patience.deadline = math.inf


@asynccontextmanager
async def open_execution(link: Link, request: ExecStart) -> AsyncIterator[RawExecution]:
    """Run a command in the guest, or copy files, for as long as the block lasts.

    Entering it does not wait for the guest. Leaving it before the command has
    ended resets the call, so that the guest kills the command's process group;
    it does not wait for that either: all of it is local, and so takes no time
    that a guest could draw out.
    """
    raw = RawExecution(link)
    async with open_nursery_unwrapped() as nursery:
        nursery.start_soon(raw.run, request, name="exec")
        try:
            yield raw
        finally:
            nursery.cancel_scope.cancel()
