"""A well-behaved guest in the test's own process: grpclib's server on a memory stream.

Commands are scripts: asyncio-flavoured functions that play the guest's side of
one execution. No process and no clock is involved, so tests may jump in time.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import trio
import trio.testing
import trio_asyncio  # type: ignore[import-untyped]
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from boxlite._bulk import Channel, Frame, Piece, Room, Signal, Splitter, data_header, room_frame
from boxlite._command import Command, TerminalSize
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.session import GuestSession, open_session
from boxlite._scopes import open_nursery_unwrapped
from boxlite._wire import CONNECTION_OPENING, OUTPUT_WINDOW_BYTES
from boxlite.guest.server import PREFACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grpclib.protocol import H2Protocol
    from grpclib.server import Stream

    ExecStream = Stream[wire.ExecStart, wire.ExecResponse]
    Script = Callable[["Call"], Awaitable[None]]

BOOT_ID = "0123456789abcdef" * 2
NONCE = "fedcba9876543210" * 2
#: What precedes HTTP/2 on every connection.
OPENING = CONNECTION_OPENING.format(nonce=NONCE).encode()


def command(
    *argv: bytes,
    env: tuple[tuple[bytes, bytes], ...] = (),
    cwd: bytes = b"/",
    terminal: TerminalSize | None = None,
) -> Command:
    """Return a command; what it is called does not matter to a script."""
    return Command(argv=argv or (b"cat",), env=env, cwd=cwd, terminal=terminal)


class Call:
    """One execution, from the guest's side."""

    def __init__(self, stream: ExecStream, start: wire.ExecStart) -> None:
        self.stream = stream
        self.start = start
        self.number = stream._stream.id or 0
        self._transport = cast("_ServerTransport", stream._stream._transport)
        self._heard: asyncio.Queue[Frame] = asyncio.Queue()

    async def play(self, script: Script) -> None:
        """Play the guest's side of it."""
        self._transport.listeners[self.number] = self._heard.put_nowait
        await script(self)

    async def say(self, **event: Any) -> None:  # noqa: ANN401 - one of several types
        """Send one event."""
        await self.stream.send_message(wire.ExecResponse(**event))

    async def say_started(self) -> None:
        """Say that the command runs."""
        await self.say(started=wire.ExecStarted(pid=7))

    def write(self, channel: Channel, data: bytes) -> None:
        """Send output."""
        self._transport.write(data_header(self.number, channel, len(data)) + data)

    def give_room(self, size: int) -> None:
        """Give room for standard input."""
        self._transport.write(room_frame(self.number, Channel.STDIN, size))

    async def say_exited(self, exit_code: int = 0, signal: int = 0) -> None:
        """Say that the command has ended."""
        await self.say(exited=wire.ExecExited(exit_code=exit_code, signal=signal))

    async def hear(self) -> Frame:
        """Return what the host sends next."""
        return await self._heard.get()


async def cat(call: Call) -> None:
    """Echo standard input to standard output, within the windows; a signal ends it."""
    await call.say_started()
    room, waiting, ending = call.start.stdout_window, bytearray(), False
    while not ending or waiting:
        if waiting and room:
            chunk = bytes(waiting[: min(room, 65_536)])
            del waiting[: len(chunk)]
            room -= len(chunk)
            call.write(Channel.STDOUT, chunk)
            if not ending:
                call.give_room(len(chunk))
            continue
        match await call.hear():
            case Piece(_, _, data):
                waiting += data
                ending = not data
            case Room(_, _, size):
                room += size
                assert room <= OUTPUT_WINDOW_BYTES
            case Signal(_, number):
                await call.say_exited(signal=number)
                return
    await call.say_exited()


async def true(call: Call) -> None:
    """Start and exit."""
    await call.say_started()
    await call.say_exited()


async def _agree() -> None:
    """Find nothing wrong with what is asked for."""


class FakeGuest:
    """The agent. Set ``script`` to choose what commands do.

    Attributes:
        script: Plays the guest's side of every execution.
        cut_off: Executions whose call the host ended early.
        refusal: What the guest says instead of what it is.
        set_ups: What the guest was asked to set up.
        set_up_script: What it does about that, after which it says that it is done.
        on_shutdown: Called when the host has been told that the guest powers off.
        pad_ping: So many bytes are added to the payload of an answer to a ping.
    """

    def __init__(self) -> None:
        self.script: Script = cat
        self.cut_off = 0
        self.running = 0
        self.refusal: str | None = None
        self.set_ups: list[wire.SetUpRequest] = []
        self.set_up_script: Callable[[], Awaitable[None]] = _agree
        self.on_shutdown: Callable[[], None] = lambda: None
        self.pad_ping = 0

    def __mapping__(self) -> dict[str, Handler]:
        """Name the calls to grpclib."""
        unary = Cardinality.UNARY_UNARY
        guest = "/boxlite.v1.Guest/"
        return {
            guest + "Info": Handler(self._info, unary, wire.InfoRequest, wire.InfoResponse),
            guest + "Ping": Handler(self._ping, unary, wire.PingRequest, wire.PingResponse),
            guest + "SetUp": Handler(self._set_up, unary, wire.SetUpRequest, wire.SetUpResponse),
            guest + "Shutdown": Handler(
                self._shutdown, unary, wire.ShutdownRequest, wire.ShutdownResponse
            ),
            "/boxlite.v1.Execution/Exec": Handler(
                self._exec, Cardinality.UNARY_STREAM, wire.ExecStart, wire.ExecResponse
            ),
        }

    async def _info(self, stream: Stream[wire.InfoRequest, wire.InfoResponse]) -> None:
        await stream.recv_message()
        if self.refusal is not None:
            raise GRPCError(Status.FAILED_PRECONDITION, self.refusal)
        await stream.send_message(
            wire.InfoResponse(
                agent_version="0.1.0",
                kernel_release="6.1.0",
                boot_id=BOOT_ID,
                memory_total_kib=262_144,
            )
        )

    async def _ping(self, stream: Stream[wire.PingRequest, wire.PingResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None
        await stream.send_message(
            wire.PingResponse(
                payload=request.payload + bytes(self.pad_ping),
                boot_id=BOOT_ID,
                uptime_ms=1,
                executions=self.running,
            )
        )

    async def _set_up(self, stream: Stream[wire.SetUpRequest, wire.SetUpResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None
        self.set_ups.append(request)
        await self.set_up_script()
        await stream.send_message(wire.SetUpResponse(disk_bytes=1 << 30))

    async def _shutdown(self, stream: Stream[wire.ShutdownRequest, wire.ShutdownResponse]) -> None:
        await stream.recv_message()
        await stream.send_message(wire.ShutdownResponse(executions_ended=self.running))
        self.on_shutdown()

    async def _exec(self, stream: ExecStream) -> None:
        request = await stream.recv_message()
        assert request is not None
        self.running += 1
        try:
            await Call(stream, request).play(self.script)
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        finally:
            self.running -= 1


class _ServerTransport(asyncio.Transport):
    """Carries a server's connection over a Trio stream, without any limits."""

    def __init__(self, stream: trio.abc.Stream, protocol: H2Protocol) -> None:
        super().__init__()
        self._stream = stream
        self._protocol = protocol
        self._send, self._outbox = trio.open_memory_channel[bytes](10_000)
        self._closing = False
        self._opening = len(OPENING)
        self._splitter = Splitter(skip=len(PREFACE))
        self.listeners: dict[int, Callable[[Frame], None]] = {}

    async def run(self) -> None:
        self._protocol.connection_made(self)
        async with self._stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await self._stream.receive_some(65_536):
                    skipped = min(self._opening, len(data))
                    self._opening -= skipped
                    for part in self._splitter.feed(bytes(data[skipped:])):
                        if isinstance(part, bytes):
                            self._protocol.data_received(part)
                        elif part.call in self.listeners:
                            self.listeners[part.call](part)
            self._closing = True
            self._protocol.connection_lost(None)
            nursery.cancel_scope.cancel()

    async def _write(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in self._outbox:
                await self._stream.send_all(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._send.send_nowait(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._send.close()


async def serve_fake_guest(
    stream: trio.abc.Stream,
    *,
    task_status: trio.TaskStatus[FakeGuest] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a guest on one end of a stream, in an event loop of its own."""
    async with trio_asyncio.open_loop():
        guest = FakeGuest()
        protocol = Server([guest])._protocol_factory()
        task_status.started(guest)
        await _ServerTransport(stream, protocol).run()


@asynccontextmanager
async def connected(cap: float = 60) -> AsyncIterator[tuple[GuestSession, FakeGuest]]:
    """Give a session and the guest at its other end; fail after so many seconds."""
    with trio.fail_after(cap):
        async with unanswered(cap) as (session, theirs), open_nursery_unwrapped() as nursery:
            guest: FakeGuest = await nursery.start(serve_fake_guest, theirs)
            yield session, guest
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def unanswered(
    cap: float = 60, *, lockstep: bool = False
) -> AsyncIterator[tuple[GuestSession, trio.abc.Stream]]:
    """Give a session and the other end of its stream; fail after so many seconds.

    Args:
        cap: The seconds.
        lockstep: Sending waits until the other end has received.
    """
    ours: trio.abc.Stream
    theirs: trio.abc.Stream
    if lockstep:
        ours, theirs = trio.testing.lockstep_stream_pair()
    else:
        ours, theirs = trio.testing.memory_stream_pair()
    with trio.fail_after(cap):
        async with open_session(ours, nonce=NONCE) as session:
            yield session, theirs
