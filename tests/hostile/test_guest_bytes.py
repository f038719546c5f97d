"""Whatever a guest sends: one call fails, or one session, with the right error and in time."""

from __future__ import annotations

import os
import resource
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_guest import BOOT_ID, command, connected
from hostile_guest import (
    ALTSVC,
    ANSWER,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    OK,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    HostileGuest,
    attacked,
    frame,
    message,
)
from hypothesis import HealthCheck, given, settings, strategies as st

from boxlite import _bulk as bulk
from boxlite._bulk import DATA_BYTES, Channel, data_header, room_frame
from boxlite._errors import (
    BoxliteError,
    GuestError,
    GuestFailedError,
    GuestLostError,
    GuestProtocolError,
    GuestTimeoutError,
)
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.channel import CONNECTION_WINDOW_BYTES
from boxlite._rpc.frames import IDLE_FRAMES
from boxlite._wire import MAX_MESSAGE_BYTES, OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite._rpc.execution import RawExecution
    from boxlite._rpc.session import GuestSession

    Attack = Callable[[HostileGuest], Awaitable[object]]

STARTED = wire.ExecResponse(started=wire.ExecStarted(pid=7))
EXITED = wire.ExecResponse(exited=wire.ExecExited(exit_code=0, signal=0))


def said(*events: wire.ExecResponse) -> bytes:
    """Return events as they travel."""
    return b"".join(message(bytes(event)) for event in events)


def stdout(call: int, size: int) -> bytes:
    """Return a bulk frame of output."""
    return data_header(call, Channel.STDOUT, size) + bytes(size)


async def ended_without_status(guest: HostileGuest) -> None:
    stream = await guest.answer()
    await guest.send_data(stream, b"", end=True)


async def second_answer(guest: HostileGuest) -> None:
    stream = await guest.answer(end=True)
    await guest.send_headers(stream, ANSWER)


async def reset(guest: HostileGuest) -> None:
    stream = await guest.wait_for_request()
    await guest.send(frame(RST_STREAM, (8).to_bytes(4, "big"), stream=stream))


async def bad_window(guest: HostileGuest) -> None:
    stream = await guest.wait_for_request()
    await guest.send(frame(WINDOW_UPDATE, (0x7FFFFFFF).to_bytes(4, "big"), stream=stream))


def after_request(data: bytes) -> Attack:
    """Send bytes once a call waits for its answer."""

    async def attack(guest: HostileGuest) -> None:
        await guest.wait_for_request()
        await guest.send(data)

    return attack


def at_once(data: bytes) -> Attack:
    """Send bytes instead of a greeting."""
    return lambda guest: guest.send(data)


def answering(*bodies: bytes, end: bool = False, **headers: str) -> Attack:
    """Answer the call with these bytes."""
    named = {**dict(ANSWER), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return lambda guest: guest.answer(*bodies, headers=list(named.items()), end=end)


#: Attacks that cost the session: what is broken is the connection's own state.
ON_THE_SESSION: dict[str, tuple[Attack, type[BoxliteError], str]] = {
    "unknown frame": (after_request(frame(0xF7, b"x")), GuestProtocolError, "0xf7"),
    "ALTSVC": (after_request(frame(ALTSVC, b"\0\0x")), GuestProtocolError, "ALTSVC"),
    "PUSH_PROMISE": (
        after_request(frame(PUSH_PROMISE, b"\0\0\0\x02", stream=1, flags=END_HEADERS)),
        GuestProtocolError,
        "PUSH_PROMISE",
    ),
    "interim reply": (
        lambda guest: guest.answer(headers=[(":status", "103")]),
        GuestProtocolError,
        "InformationalResponseReceived",
    ),
    "no status line": (
        lambda guest: guest.answer(headers=[("content-type", "application/grpc")]),
        GuestProtocolError,
        ":status",
    ),
    "headers that are not ASCII": (
        after_request(frame(HEADERS, b"\x88\x40\x01\xff\x01\xff", stream=1, flags=END_HEADERS)),
        GuestProtocolError,
        "cannot be processed",
    ),
    "garbage for headers": (
        after_request(frame(HEADERS, b"\xff" * 40, stream=1, flags=END_HEADERS)),
        GuestProtocolError,
        "cannot be processed",
    ),
    "a frame of 16 MiB": (
        after_request(b"\xff\xff\xff" + bytes([DATA, 0]) + b"\0\0\0\x01"),
        GuestProtocolError,
        "16777215 bytes",
    ),
    "HTTP/1.1": (at_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"), GuestProtocolError, "HTTP/2"),
    "no greeting": (at_once(frame(PING, bytes(8))), GuestProtocolError, "does not speak HTTP/2"),
    "headers without end": (
        after_request(frame(HEADERS, b"", stream=1) + frame(CONTINUATION, b"", stream=1) * 100),
        GuestProtocolError,
        "headers of 0 bytes in 10 frames",
    ),
    "huge headers": (
        after_request(
            frame(HEADERS, bytes(16_384), stream=1)
            + frame(CONTINUATION, bytes(16_384), stream=1) * 2
        ),
        GuestProtocolError,
        "headers of 49152 bytes",
    ),
    "headers that unpack to much": (
        # One entry of 4,000 bytes in the table, then as many references to it.
        after_request(
            frame(
                HEADERS,
                b"\x88\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 4000,
                stream=1,
                flags=END_HEADERS,
            )
        ),
        GuestProtocolError,
        "cannot be processed",
    ),
    "PING flood": (
        after_request(frame(PING, bytes(8)) * (IDLE_FRAMES + 1)),
        GuestProtocolError,
        "carry nothing",
    ),
    "empty DATA flood": (
        after_request(frame(DATA, stream=1) * (IDLE_FRAMES + 1)),
        GuestProtocolError,
        "carry nothing|cannot be processed",
    ),
    "SETTINGS flood": (
        after_request(frame(SETTINGS) * 20),
        GuestProtocolError,
        "SETTINGS frame number",
    ),
    "many settings": (
        after_request(frame(SETTINGS, bytes(6 * 1000))),
        GuestProtocolError,
        "1000 entries",
    ),
    "PING of the wrong size": (
        after_request(frame(PING, b"x")),
        GuestProtocolError,
        "cannot be processed",
    ),
    "data for a call that was not made": (
        after_request(frame(DATA, b"x", stream=99)),
        GuestProtocolError,
        "cannot be processed",
    ),
    "a call to the host": (
        after_request(frame(HEADERS, b"\x88", stream=2, flags=END_HEADERS)),
        GuestProtocolError,
        "cannot be processed",
    ),
    "GOAWAY": (
        after_request(frame(GOAWAY, bytes(4) + (2).to_bytes(4, "big") + b"bye\x1b")),
        GuestLostError,
        r"GOAWAY, error code 2, 'bye.*x1b'",
    ),
    "hanging up": (lambda guest: guest.close(), GuestLostError, "closed the connection"),
}

#: Attacks that cost a call; the session goes on.
ON_THE_CALL: dict[str, tuple[Attack, type[BoxliteError], str]] = {
    "4 GiB announced": (
        answering(message(b"", announced=0xFFFFFFFF)),
        GuestProtocolError,
        "4294967295 bytes: at most 1048576",
    ),
    "one byte too many announced": (
        answering(message(b"", announced=MAX_MESSAGE_BYTES + 1)),
        GuestProtocolError,
        "1048577",
    ),
    "a compressed message": (
        answering(message(b"x", compressed=1)),
        GuestProtocolError,
        "compressed",
    ),
    "a message that ends early": (
        answering(message(b"x", announced=9), end=True),
        GuestProtocolError,
        "1 of the next 9 bytes",
    ),
    "a prefix that ends early": (
        answering(b"\0\0", end=True),
        GuestProtocolError,
        "2 of the next 5 bytes",
    ),
    "no message": (answering(end=True), GuestProtocolError, "without an answer"),
    "no status": (ended_without_status, GuestProtocolError, "without a status"),
    "a message of garbage": (
        answering(message(b"\xff" * 40), end=True),
        GuestProtocolError,
        "number without an end",
    ),
    "text that is not UTF-8": (
        answering(message(b"\x12\x01\xff"), end=True),
        GuestProtocolError,
        "PingResponse cannot be read",
    ),
    "a field that ends early": (
        answering(message(b"\x0a\x7fxx"), end=True),
        GuestProtocolError,
        "127 bytes, of which 2 came",
    ),
    "another payload": (
        answering(message(bytes(wire.PingResponse(payload=b"no", boot_id=BOOT_ID))), end=True),
        GuestProtocolError,
        "another payload",
    ),
    "a boot id that is none": (
        answering(message(bytes(wire.PingResponse(boot_id="\x1b]0;x"))), end=True),
        GuestProtocolError,
        r"boot_id is '\\x1b\]0;x'",
    ),
    "a reset": (reset, GuestLostError, "dropped the call"),
    "a window beyond all bounds": (bad_window, GuestProtocolError, "rules of HTTP/2"),
    "another content type": (
        answering(content_type="text/html"),
        GuestFailedError,
        "Invalid content-type",
    ),
    "an HTTP error": (
        lambda guest: guest.answer(headers=[(":status", "502")]),
        GuestFailedError,
        "UNAVAILABLE",
    ),
    "a status that is no number": (
        answering(grpc_status="zero"),
        GuestFailedError,
        "Invalid grpc-status",
    ),
    "a status with control characters": (
        answering(grpc_status="3", grpc_message="%1b%5b31mred"),
        GuestFailedError,
        r"INVALID_ARGUMENT: Ping: \\x1b\[31mred",
    ),
    "a call that is not known": (
        answering(grpc_status="12", grpc_message="?"),
        GuestProtocolError,
        "not of the same version",
    ),
    "a deadline of its own": (answering(grpc_status="4"), GuestTimeoutError, "gave up"),
    "silence": (lambda guest: guest.wait_for_request(), GuestTimeoutError, "within 5 s"),
    "half an answer": (answering(b"\0"), GuestTimeoutError, "within 5 s"),
    "no room for calls": (
        at_once(frame(SETTINGS, b"\0\x03" + bytes(4))),
        GuestTimeoutError,
        "within 5 s",
    ),
}

#: Attacks by what an execution says, which is legal HTTP/2 and legal gRPC.
BY_EVENTS: dict[str, tuple[bytes, type[BoxliteError], str]] = {
    "nothing": (b"", GuestProtocolError, "ended the call of a command that was starting"),
    "no event": (said(wire.ExecResponse()), GuestProtocolError, "no event that is known"),
    "an unknown event": (message(b"\x7a\x01x"), GuestProtocolError, "unknown field 15"),
    "two events": (
        message(bytes(STARTED) + bytes(EXITED)),
        GuestProtocolError,
        "more than one event",
    ),
    "an event twice": (
        said(STARTED) + message(bytes(EXITED) * 2),
        GuestProtocolError,
        "more than one event",
    ),
    "an event of another type": (message(b"\x18\x01"), GuestProtocolError, "wire type 0"),
    "exit before the start": (said(EXITED), GuestProtocolError, "ExecExited .* starting"),
    "started twice": (said(STARTED, STARTED), GuestProtocolError, "ExecStarted .* running"),
    "refused after the start": (
        said(
            STARTED,
            wire.ExecResponse(refused=wire.ExecRefused(reason=wire.RefusalReason.RESOURCES)),
        ),
        GuestProtocolError,
        "ExecRefused .* running",
    ),
    "refused without a reason": (
        said(wire.ExecResponse(refused=wire.ExecRefused())),
        GuestProtocolError,
        "reason is 0",
    ),
    "refused for an unknown reason": (
        message(b"\x12\x02\x08\x63"),
        GuestProtocolError,
        "reason is 99",
    ),
    "refused at length": (
        said(
            wire.ExecResponse(
                refused=wire.ExecRefused(reason=wire.RefusalReason.INVALID, detail="x" * 5000)
            )
        ),
        GuestProtocolError,
        "detail has 5000",
    ),
    "exited twice": (said(STARTED, EXITED, EXITED), GuestProtocolError, "last word"),
    "no exit": (said(STARTED), GuestProtocolError, "command that was running"),
    "process id 0": (
        said(wire.ExecResponse(started=wire.ExecStarted())),
        GuestProtocolError,
        "pid is 0",
    ),
    "exit code 256": (
        said(STARTED, wire.ExecResponse(exited=wire.ExecExited(exit_code=256))),
        GuestProtocolError,
        "exit_code is 256",
    ),
    "signal 65": (
        said(STARTED, wire.ExecResponse(exited=wire.ExecExited(signal=65))),
        GuestProtocolError,
        "signal is 65",
    ),
}


#: Attacks by bulk frames of a call that runs: they cost the execution.
BY_BULK: dict[str, tuple[Callable[[int], bytes], str]] = {
    "more than the window": (
        lambda call: (
            stdout(call, DATA_BYTES) * (OUTPUT_WINDOW_BYTES // DATA_BYTES) + stdout(call, 1)
        ),
        "1 bytes of output where it may send 0",
    ),
    "bytes of standard input": (
        lambda call: data_header(call, Channel.STDIN, 1) + b"x",
        "standard input, which it only gets",
    ),
    "room for output": (
        lambda call: room_frame(call, Channel.STDOUT, 1),
        "room for output, which it only sends",
    ),
    "a window that was open": (
        lambda call: room_frame(call, Channel.STDIN, 1),
        f"at most {STDIN_WINDOW_BYTES} are allowed",
    ),
    "a window beyond all bounds": (
        lambda call: room_frame(call, Channel.STDIN, 0xFFFFFFFF),
        f"by 4294967295 bytes to {STDIN_WINDOW_BYTES + 0xFFFFFFFF}",
    ),
    "the end of a stream": (lambda call: stdout(call, 0), "ended stdout, which its exit does"),
    "a signal": (lambda call: bulk.signal_frame(call, 9), "a signal, which it only gets"),
    "a size": (lambda call: bulk.resize_frame(call, 9, 9), "a resize, which it only gets"),
    "room for nothing": (lambda call: room_frame(call, Channel.STDIN, 0), "0 bytes of room"),
}

#: Attacks by bulk frames that no call can be made answerable for.
BULK_ON_THE_SESSION: dict[str, tuple[bytes, str]] = {
    "data of 16 MiB": (b"\xff\xff\xff" + bytes([bulk.DATA, 1, 0, 0, 0, 1]), "16777215 bytes"),
    "room in 3 bytes": (frame(bulk.ROOM, b"123", stream=1) + bytes(9), "ROOM frame of 3 bytes"),
    "room in 5 bytes": (frame(bulk.ROOM, b"12345", stream=1), "ROOM frame of 5 bytes"),
    "a stream that is none": (frame(bulk.DATA, b"x", stream=1, flags=3), "for the stream 3"),
    "another stream that is none": (frame(bulk.ROOM, bytes(4), flags=255), "for the stream 255"),
    "data of a call to come": (frame(bulk.DATA, b"x", stream=3, flags=1), "never made: 3"),
    "data of the host's calls": (frame(bulk.DATA, b"x", stream=2, flags=1), "never made: 2"),
    "room for no call": (frame(bulk.ROOM, bytes(4)), "never made: 0"),
    "a call of 32 bits": (frame(bulk.DATA, b"x", stream=0xFFFFFFFF, flags=1), "never made"),
}


@pytest.mark.parametrize("name", BY_BULK)
async def test_a_bad_bulk_frame_costs_its_execution_only(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Every user of the command learns what the guest did; the session goes on."""
    attack, words = BY_BULK[name]
    async with attacked() as (session, guest), session.execute(command()) as raw:
        call = await guest.answer(said(STARTED))
        await raw.wait_started()
        await guest.send(attack(call))
        with pytest.raises(GuestProtocolError, match=words):
            await raw.wait()
        with pytest.raises(GuestProtocolError, match=words):
            await raw.send_stdin(bytes(2 * STDIN_WINDOW_BYTES))
        await trio.testing.wait_all_tasks_blocked()

        assert not session.lost.is_set()
        assert session.open_calls == 0


@pytest.mark.parametrize("name", BULK_ON_THE_SESSION)
async def test_a_bulk_frame_of_no_call_costs_the_session(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """What is broken is the connection; the command learns it, and the neighbour is well."""
    attack, words = BULK_ON_THE_SESSION[name]
    async with (
        connected() as (healthy, _),
        attacked() as (session, guest),
        session.execute(command()) as raw,
    ):
        await guest.answer(said(STARTED))
        await guest.send(attack)
        with pytest.raises(GuestProtocolError, match=words):
            await raw.wait()

        assert isinstance(await session.lost.wait(), GuestProtocolError)
        await healthy.ping()


async def test_output_after_the_exit_is_dropped_or_refused() -> None:
    """Dropped once the call has ended; until then it breaks the command's conversation."""
    async with attacked() as (session, guest), session.execute(command()) as raw:
        call = await guest.answer(said(STARTED, EXITED))
        await trio.testing.wait_all_tasks_blocked()
        await guest.send(stdout(call, 1))
        with pytest.raises(GuestProtocolError, match="1 bytes of output .* last word"):
            await raw.wait()
        await trio.testing.wait_all_tasks_blocked()
        await guest.send(stdout(call, 1))
        await trio.testing.wait_all_tasks_blocked()

        assert not session.lost.is_set()


@pytest.mark.parametrize("read", [True, False], ids=["read", "late"])
async def test_a_flood_of_tiny_frames_holds_neither_memory_nor_another_box(read: bool) -> None:
    """Of output that is read as it comes, or of a call that has ended: ten bytes for each byte.

    ``nox -s fuzz`` sends ten million of them.
    """
    frames = int(os.environ.get("BOXLITE_FLOOD_FRAMES", "200000"))
    async with connected(3600) as (healthy, _), attacked(3600) as (session, guest):
        async with session.execute(command()) as raw, trio.open_nursery() as nursery:
            call = await guest.answer(said(STARTED))
            await raw.wait_started()
            if not read:
                nursery.start_soon(_expect_exit, raw)
                await guest.send_data(call, said(EXITED))
                await guest.send_headers(call, OK, end=True)
                await trio.testing.wait_all_tasks_blocked()
            flood = stdout(call, 1) * 10_000
            received = 0
            before = _resident_bytes()
            for _ in range(frames // 10_000):
                nursery.start_soon(healthy.ping)
                await guest.send(flood)
                got = 0
                while read and got < 10_000:
                    got += len(await raw.receive(Channel.STDOUT))
                received += got
                await trio.testing.wait_all_tasks_blocked()
            grown = _resident_bytes() - before

            assert received == (frames if read else 0)
            assert grown < 32 << 20
            assert not session.lost.is_set()


async def _expect_exit(raw: RawExecution) -> None:
    assert (await raw.wait()).exit_code == 0


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("name", ON_THE_SESSION)
async def test_a_broken_connection_costs_its_session_and_no_other(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The call, the session and every later call tell the cause; the neighbour is well."""
    attack, error, words = ON_THE_SESSION[name]
    async with connected() as (healthy, _), attacked() as (session, guest):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attack, guest)
            with pytest.raises(error, match=words):
                await session.ping()
        cause = await session.lost.wait()
        with pytest.raises(error):
            await session.ping()

        assert isinstance(cause, error)
        await healthy.ping()


@pytest.mark.parametrize("name", ON_THE_CALL)
async def test_a_bad_answer_costs_its_call_only(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The session is still there for the next call."""
    attack, error, words = ON_THE_CALL[name]
    async with attacked() as (session, guest):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attack, guest)
            with pytest.raises(error, match=words):
                await session.ping()
        await trio.testing.wait_all_tasks_blocked()

        assert not session.lost.is_set()
        assert session.open_calls == 0


@pytest.mark.parametrize("name", BY_EVENTS)
async def test_a_bad_event_costs_its_execution_only(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever waits for the command learns what the guest did."""
    body, error, words = BY_EVENTS[name]
    async with attacked() as (session, guest), session.execute(command()) as raw:
        async with trio.open_nursery() as nursery:

            async def attack() -> None:
                await guest.answer(body, end=True)

            nursery.start_soon(attack)
            with pytest.raises(error, match=words):
                await raw.wait()
        await trio.testing.wait_all_tasks_blocked()

        assert not session.lost.is_set()
        assert session.open_calls == 0


async def test_what_came_before_the_reset_of_an_answered_call_is_kept() -> None:
    """A server may reset a call that it has answered, in the same packet as the answer."""
    async with attacked() as (session, guest), session.execute(command()) as raw:
        stream = await guest.answer()
        block = guest._h2.encoder.encode(OK)
        await guest.send(
            frame(DATA, said(STARTED), stream=stream)
            + stdout(stream, 10)
            + frame(DATA, said(EXITED), stream=stream)
            + frame(HEADERS, block, stream=stream, flags=END_HEADERS | 1)
            + frame(RST_STREAM, bytes(4), stream=stream)
        )

        assert (await raw.wait()).exit_code == 0
        assert await raw.receive(Channel.STDOUT) == bytes(10)


async def test_a_flood_for_a_refused_message_is_not_kept() -> None:
    """Four gigabytes announced, 64 MiB sent: the host reads it all and holds none of it."""
    async with attacked() as (session, guest), trio.open_nursery() as nursery:
        nursery.start_soon(_expect_refusal, session)
        stream = await guest.answer(message(b"", announced=0xFFFFFFFF))
        tracemalloc.start()
        for _ in range(4096):
            await guest.send(frame(DATA, bytes(16_384), stream=stream))
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert peak < 2 * CONNECTION_WINDOW_BYTES
        assert session.open_calls == 0


async def _expect_refusal(session: GuestSession) -> None:
    with pytest.raises(GuestProtocolError, match="4294967295 bytes"):
        await session.ping()


async def test_a_message_in_tiny_frames_takes_no_more_room_than_its_bytes() -> None:
    """One byte in each frame: an object per frame would be a hundred times the data."""
    async with attacked() as (session, guest), trio.open_nursery() as nursery:
        nursery.start_soon(session.ping)
        stream = await guest.answer(message(b"", announced=20_000))
        await guest.send(frame(DATA, b"x", stream=stream) * 19_999)
        await trio.testing.wait_all_tasks_blocked()
        protocol = session._link.channel._protocol
        assert protocol is not None
        (held,) = protocol.processor.streams.values()
        nursery.cancel_scope.cancel()

    assert held.buffer._held == bytearray(b"x" * 19_999)  # type: ignore[attr-defined]


async def test_a_guest_that_makes_the_host_answer_and_does_not_read_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every PING is answered by HTTP/2 itself, whether or not the answers are taken."""
    limit = 1 << 17
    monkeypatch.setattr("boxlite._rpc.transport.UNSENT_BYTES", limit)
    async with attacked(lockstep=True) as (session, guest), trio.open_nursery() as nursery:
        nursery.start_soon(_expect_unread, session)
        stream = await guest.answer(message(b"", announced=1000))
        rounds = 0
        with suppress(trio.BrokenResourceError):
            while True:
                await guest.send(frame(PING, bytes(8)) * IDLE_FRAMES)
                await guest.send(frame(DATA, b"x", stream=stream))
                rounds += 1

        assert rounds <= limit // (17 * IDLE_FRAMES)
        assert isinstance(await session.lost.wait(), GuestProtocolError)


async def _expect_unread(session: GuestSession) -> None:
    with pytest.raises(GuestProtocolError, match="the guest does not read"):
        await session.ping()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), greeted=st.booleans())
async def test_random_bytes_end_in_an_error_of_the_guest(data: bytes, greeted: bool) -> None:
    """And never in anything else, however the bytes begin."""
    async with attacked() as (session, guest):
        if greeted:
            await guest.greet()
        await guest.send(data)
        await guest.close()
        with pytest.raises(GuestError):
            await session.ping()
        error = await session.lost.wait()

        assert isinstance(error, GuestError)


@settings(max_examples=100, deadline=None)
@given(
    frames=st.lists(
        st.tuples(
            st.integers(0, 11),
            st.binary(max_size=30),
            st.sampled_from([0, 1, 2, 3]),
            st.integers(0, 255),
        ),
        max_size=8,
    )
)
async def test_random_frames_end_in_an_error_of_the_guest(
    frames: list[tuple[int, bytes, int, int]],
) -> None:
    """Frames that are well formed reach further into the libraries than noise does."""
    async with attacked() as (session, guest):
        async with trio.open_nursery() as nursery:

            async def attack() -> None:
                await guest.wait_for_request()
                with suppress(trio.BrokenResourceError):
                    for kind, payload, stream, flags in frames:
                        await guest.send(frame(kind, payload, stream=stream, flags=flags))
                await guest.close()

            nursery.start_soon(attack)
            with pytest.raises(GuestError):
                await session.ping()
        error = await session.lost.wait()

        assert isinstance(error, GuestError)
