"""The subclasses of grpclib's classes, and that grpclib uses them."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from fake_guest import connected, unanswered
from hostile_guest import attacked

from boxlite._errors import GuestLostError, GuestProtocolError
from boxlite._rpc.channel import (
    CONNECTION_WINDOW_BYTES,
    HEADER_LIST_BYTES,
    STREAM_WINDOW_BYTES,
    GuestProtocol,
    MessageBuffer,
)
from boxlite._wire import MAX_MESSAGE_BYTES


class _Asyncio:
    """Runs the buffer's coroutine as far as it goes without waiting."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.buffer = MessageBuffer(self._acknowledge)

    def _acknowledge(self, size: int) -> None:
        self.acknowledged += size

    def read(self, size: int) -> bytes:
        reading = self.buffer.read(size)
        with pytest.raises(StopIteration) as done:
            reading.send(None)
        return bytes(done.value.value)


def prefix(size: int, *, compressed: int = 0) -> bytes:
    """Return what gRPC puts before a message."""
    return bytes([compressed]) + size.to_bytes(4, "big")


def test_a_buffer_gives_window_back_only_for_what_was_taken() -> None:
    """Except for padding, which nobody will take."""
    run = _Asyncio()
    run.buffer.add(prefix(5) + b"hel", 8)
    run.buffer.add(b"lo", 2 + 10)
    assert run.acknowledged == 10
    assert run.read(5) == prefix(5)
    assert run.acknowledged == 15
    assert run.read(5) == b"hello"

    assert run.acknowledged == 20
    assert run.buffer.unacked_size() == 0


def test_what_is_left_in_a_buffer_is_given_back_at_the_end_of_the_call() -> None:
    """Otherwise calls that are cut off would use up the connection's window."""
    run = _Asyncio()
    run.buffer.add(prefix(9) + b"x", 6)

    assert run.buffer.unacked_size() == 6


def test_an_empty_message_and_then_the_end() -> None:
    """No bytes in a message is not the end; no bytes between messages is."""
    run = _Asyncio()
    run.buffer.add(prefix(0), 5)
    run.buffer.eof()

    assert run.read(5) == prefix(0)
    assert run.read(0) == b""
    assert run.read(5) == b""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (prefix(MAX_MESSAGE_BYTES + 1), "at most 1048576"),
        (prefix(1, compressed=1), "compressed"),
        (b"\0\0", "2 of the next 5 bytes"),
    ],
)
def test_a_bad_prefix_is_refused_before_anything_of_the_message(data: bytes, words: str) -> None:
    """The length is looked at when it is there."""
    run = _Asyncio()
    run.buffer.add(data, len(data))
    run.buffer.eof()

    with pytest.raises(GuestProtocolError, match=words):
        run.buffer.read(5).send(None)


def test_the_largest_message_is_allowed() -> None:
    """And fits into a stream's window even if h2 has not reopened it."""
    run = _Asyncio()
    run.buffer.add(prefix(MAX_MESSAGE_BYTES), 5)
    run.buffer.add(bytes(MAX_MESSAGE_BYTES), MAX_MESSAGE_BYTES)

    assert run.read(5) == prefix(MAX_MESSAGE_BYTES)
    assert len(run.read(MAX_MESSAGE_BYTES)) == MAX_MESSAGE_BYTES
    assert MAX_MESSAGE_BYTES + 5 <= STREAM_WINDOW_BYTES // 2
    assert STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES // 2


async def test_the_limits_are_in_force_on_the_connection() -> None:
    """Our protocol and our connection are what grpclib runs on."""
    async with attacked() as (session, guest):
        await guest.greet()
        await trio.testing.wait_all_tasks_blocked()
        protocol = session._link.channel._protocol
        assert isinstance(protocol, GuestProtocol)
        h2 = protocol.connection._connection

        assert h2.inbound_flow_control_window == CONNECTION_WINDOW_BYTES
        assert h2.local_settings.initial_window_size == STREAM_WINDOW_BYTES
        assert h2.local_settings.enable_push == 0
        assert h2.decoder.max_header_list_size == HEADER_LIST_BYTES


async def test_a_channel_connects_once() -> None:
    """Left to itself, grpclib would look for another guest: it could be another boot of it."""
    async with unanswered() as (session, theirs):
        channel = session._link.channel
        await theirs.aclose()
        await session.lost.wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(GuestLostError, match="was not sent"):
            channel.__connect__().send(None)


async def test_a_message_of_the_largest_size_arrives() -> None:
    """The windows let it through although it is acknowledged only as a whole."""
    async with connected() as (session, guest):
        for _ in range(5):
            guest.pad_ping = MAX_MESSAGE_BYTES - 64
            with pytest.raises(GuestProtocolError, match="payload"):
                await session.ping()
        guest.pad_ping = 0
        await session.ping()
