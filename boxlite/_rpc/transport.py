"""An asyncio transport over a Trio stream, which contains what a guest can do.

grpclib drives an asyncio protocol. Its bytes come from and go to a Trio stream
here, through a reader and a writer task of ours. So an exception that a guest
provokes in the protocol ends this connection and nothing else, whereas in a
transport of the event loop it would end the loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import trio

from boxlite._bulk import BulkError, Frame, Splitter
from boxlite._errors import BoxliteError, GuestLostError, GuestProtocolError
from boxlite._scopes import open_nursery_unwrapped

from .frames import FrameGuard
from .text import shown

if TYPE_CHECKING:
    from .lost import Lost

READ_BYTES: Final = 1 << 18
#: Frames of one read before others get their turn: some milliseconds of work.
PARTS_PER_TURN: Final = 500
#: Unsent bytes above which calls have to wait before they write more, and
#: below which they go on.
PAUSE_BYTES: Final = 1 << 18
RESUME_BYTES: Final = 1 << 16
#: Unsent bytes that end the connection. A paused call still finishes its frame
#: of 16 KiB, so this leaves room for some hundred calls; what goes beyond is a
#: guest that makes HTTP/2 answer it and does not read the answers.
UNSENT_BYTES: Final = 8 << 20
#: How long what the guest sent before it hung up is still read.
DRAIN_SECONDS: Final = 1.0


class GuestPeer(Protocol):
    """What a transport carries the bytes of: an asyncio protocol that also takes bulk frames."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def bulk_received(self, frame: Frame) -> None: ...


class StreamTransport(asyncio.Transport):
    """Carries one connection: between a Trio stream and an asyncio protocol.

    Args:
        stream: The connection to the guest. :meth:`run` owns and closes it.
        lost: Set when the connection has ended, with the cause.
    """

    def __init__(self, stream: trio.abc.Stream, lost: Lost) -> None:
        super().__init__()
        self._stream = stream
        self._lost = lost
        self._protocol: GuestPeer | None = None
        self._splitter = Splitter(FrameGuard().check)
        self._writable = trio.lowlevel.ParkingLot()
        self._outbox = bytearray()
        self._in_flight = 0
        self._paused = False
        self._write_wanted = trio.Event()
        self._end_wanted = trio.Event()

    def attach(self, protocol: GuestPeer) -> None:
        """Connect the protocol, which may write at once. Call it once, before :meth:`run`."""
        self._protocol = protocol
        protocol.connection_made(self)

    async def run(self) -> None:
        """Carry bytes both ways until the connection ends, from whichever side.

        Returns when it has ended, with ``lost`` set, the protocol told and the
        stream closed; being cancelled is one way to end it. Nothing that the
        guest does makes it raise.
        """
        try:
            async with open_nursery_unwrapped() as nursery:
                nursery.start_soon(self._read, name="guest reader")
                nursery.start_soon(self._write, name="guest writer")
                await self._end_wanted.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
            if self._protocol is not None:
                self._protocol.connection_lost(None)
            await trio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        assert self._protocol is not None
        try:
            while data := await self._stream.receive_some(READ_BYTES):
                for number, part in enumerate(self._splitter.feed(bytes(data)), start=1):
                    if isinstance(part, bytes):
                        self._protocol.data_received(part)
                    else:
                        self._protocol.bulk_received(part)
                    if not number % PARTS_PER_TURN:
                        await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._broke(error)
        except BoxliteError as error:
            self.fail(error)
        except BulkError as error:
            self.fail(GuestProtocolError(f"the guest sent {error}"))
        except Exception as error:  # noqa: BLE001 - the guest chose the bytes; it must not choose this
            cause = GuestProtocolError(
                "the guest sent what cannot be processed:"
                f" {type(error).__name__}: {shown(str(error))}"
            )
            cause.__cause__ = error
            self.fail(cause)
        else:
            self.fail(GuestLostError("the guest closed the connection"))

    async def _write(self) -> None:
        try:
            while True:
                await self._write_wanted.wait()
                self._write_wanted = trio.Event()
                data, self._outbox = self._outbox, bytearray()
                self._in_flight = len(data)
                await self._stream.send_all(data)
                self._in_flight = 0
                self._resume()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # The guest no longer reads; its last words may still be unread here.
            await trio.sleep(DRAIN_SECONDS)
            self._broke(error)

    def _resume(self) -> None:
        if self._paused and self.get_write_buffer_size() <= RESUME_BYTES:
            self._paused = False
            assert self._protocol is not None
            self._protocol.resume_writing()
            self._writable.unpark_all()

    async def wait_writable(self) -> None:
        """Wait until little enough is unsent, or the connection has ended; from Trio."""
        await trio.lowlevel.checkpoint()
        while self._paused and not self.is_closing():
            await self._writable.park()

    def _broke(self, error: Exception) -> None:
        lost = GuestLostError("the connection to the guest broke")
        lost.__cause__ = error
        self.fail(lost)

    def fail(self, cause: BoxliteError) -> None:
        """End the connection at once, for this cause; unsent bytes are dropped."""
        self._lost.set(cause)
        self._end_wanted.set()
        self._writable.unpark_all()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes for the guest. After the end of the connection they are dropped."""
        if self.is_closing():
            return
        self._outbox += data
        self._write_wanted.set()
        unsent = self.get_write_buffer_size()
        if unsent > UNSENT_BYTES:
            self.fail(
                GuestProtocolError(
                    f"the guest does not read: {unsent} bytes wait for it, of which at most"
                    f" {UNSENT_BYTES} are allowed"
                )
            )
        elif unsent > PAUSE_BYTES and not self._paused:
            self._paused = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that were written and not yet sent."""
        return len(self._outbox) + self._in_flight

    def is_closing(self) -> bool:
        """Say whether the connection has ended or is about to."""
        return self._end_wanted.is_set()

    def close(self) -> None:
        """End the connection at once; unsent bytes are dropped. Idempotent."""
        self.fail(GuestLostError("the session with the guest was closed"))

    def abort(self) -> None:
        """Do the same as :meth:`close`."""
        self.close()
