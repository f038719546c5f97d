"""The asyncio transport over a Trio stream."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hostile_guest import PING, SETTINGS, frame

from boxlite._errors import BoxliteError, GuestLostError, GuestProtocolError
from boxlite._rpc.lost import Lost
from boxlite._rpc.transport import DRAIN_SECONDS, PAUSE_BYTES, UNSENT_BYTES, StreamTransport
from boxlite._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from boxlite._bulk import Frame

HELLO = frame(SETTINGS)


class _Recorder(asyncio.Protocol):
    """Notes what the transport tells it, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.received = bytearray()
        self.told: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.received += data

    def bulk_received(self, frame: Frame) -> None:
        self.told.append(f"bulk {frame.call}")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")


@asynccontextmanager
async def running(
    protocol: _Recorder,
) -> AsyncIterator[tuple[StreamTransport, trio.abc.Stream, Lost]]:
    """Give a transport that runs, the other end of its stream, and its loss."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    lost = Lost()
    transport = StreamTransport(ours, lost)
    transport.attach(protocol)
    with trio.fail_after(60):
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(transport.run)
            yield transport, theirs, lost
            nursery.cancel_scope.cancel()


async def test_bytes_pass_both_ways() -> None:
    """In order, and in one piece for several writes."""
    protocol = _Recorder()
    async with running(protocol) as (transport, theirs, _):
        await theirs.send_all(HELLO)
        transport.write(b"ab")
        transport.write(memoryview(b"cd"))

        assert await theirs.receive_some() == b"abcd"
        assert protocol.received == HELLO
        assert protocol.told == ["made"]


async def test_a_writer_is_paused_and_resumed() -> None:
    """What is unsent counts until the guest has taken it."""
    protocol = _Recorder()
    async with running(protocol) as (transport, theirs, _):
        transport.write(bytes(PAUSE_BYTES))
        assert protocol.told == ["made"]
        transport.write(b"x")
        assert protocol.told == ["made", "pause"]
        await trio.testing.wait_all_tasks_blocked()
        assert transport.get_write_buffer_size() == PAUSE_BYTES + 1
        received = 0
        while received <= PAUSE_BYTES:
            received += len(await theirs.receive_some())
        await trio.testing.wait_all_tasks_blocked()

        assert protocol.told == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() == 0


async def test_too_much_unsent_ends_the_connection() -> None:
    """The last resort against a guest that makes the host write."""
    protocol = _Recorder()
    async with running(protocol) as (transport, _, lost):
        transport.write(bytes(UNSENT_BYTES + 1))
        error = await lost.wait()
        transport.write(b"dropped")

        assert isinstance(error, GuestProtocolError)
        assert "does not read" in str(error)
        assert transport.is_closing()


async def test_the_end_of_the_stream_is_a_loss() -> None:
    """The protocol is told once, and the stream is closed."""
    protocol = _Recorder()
    async with running(protocol) as (transport, theirs, lost):
        await theirs.send_all(HELLO)
        await theirs.aclose()
        error = await lost.wait()
        await trio.testing.wait_all_tasks_blocked()
        transport.close()
        transport.abort()

        assert isinstance(error, GuestLostError)
        assert protocol.told == ["made", "lost"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotImplementedError("<UnknownFrameReceived>\x1b"), r"NotImplementedError: <Unk.*>\\x1b"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
async def test_an_exception_of_the_protocol_is_contained(error: Exception, words: str) -> None:
    """It has a name of ours and itself as the cause."""
    async with running(_Recorder(error)) as (_, theirs, lost):
        await theirs.send_all(HELLO)
        seen = await lost.wait()

        assert isinstance(seen, GuestProtocolError)
        assert seen.__cause__ is error
        with pytest.raises(GuestProtocolError, match=words):
            raise seen


async def test_an_error_of_ours_is_the_cause_as_it_is() -> None:
    """The protocol may know best why the connection is over."""
    error = GuestLostError("GOAWAY")
    async with running(_Recorder(error)) as (_, theirs, lost):
        await theirs.send_all(HELLO)

        assert await lost.wait() is error


async def test_bytes_that_are_refused_do_not_reach_the_protocol() -> None:
    """The guard comes first."""
    protocol = _Recorder()
    async with running(protocol) as (_, theirs, lost):
        await theirs.send_all(frame(PING, bytes(8)))
        error = await lost.wait()

        assert isinstance(error, GuestProtocolError)
        assert protocol.received == b""


async def test_last_words_are_read_from_a_guest_that_takes_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A write that fails must not hide the answer that lies in the other direction."""
    ours, theirs = trio.testing.memory_stream_pair()
    lost, protocol = Lost(), _Recorder()
    transport = StreamTransport(ours, lost)
    transport.attach(protocol)
    await theirs.send_all(HELLO)
    theirs.receive_stream.close()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.run)
            transport.write(b"x")
            await trio.testing.wait_all_tasks_blocked()
            await theirs.send_all(frame(PING, bytes(8)))
            began = trio.current_time()
            error = await lost.wait()

        assert trio.current_time() - began <= DRAIN_SECONDS
        assert str(error) == "the connection to the guest broke"
        assert protocol.received == HELLO + frame(PING, bytes(8))


async def test_a_connection_that_is_reset_is_a_loss() -> None:
    """A QEMU that dies with unread bytes in its socket does this."""
    mine, other = trio.socket.socketpair()
    lost = Lost()
    transport = StreamTransport(trio.SocketStream(mine), lost)
    transport.attach(_Recorder())
    await other.send(HELLO)
    await mine.send(b"never read")
    other.close()
    with trio.fail_after(60):
        await transport.run()

    assert str(lost.error) == "the connection to the guest broke"
    assert isinstance(lost.error, GuestLostError)
    assert isinstance(lost.error.__cause__, trio.BrokenResourceError)


async def test_being_cancelled_closes_everything() -> None:
    """At once, though something waits to be sent."""
    protocol = _Recorder()
    async with running(protocol) as (transport, theirs, lost):
        transport.write(b"x")
        await trio.testing.wait_all_tasks_blocked()

    assert isinstance(lost.error, BoxliteError)
    assert protocol.told == ["made", "lost"]
    assert await theirs.receive_some() in (b"", b"x")
