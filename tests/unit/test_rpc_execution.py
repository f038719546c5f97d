"""Commands in the guest, against a guest that plays by the rules."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_guest import Call, cat, command, connected, true
from grpclib.const import Status

from boxlite._bulk import Channel, Frame, Piece, Resize, Room, Signal
from boxlite._command import TerminalSize
from boxlite._errors import (
    ExecStartError,
    GuestFailedError,
    GuestLostError,
    GuestTimeoutError,
    InvalidOptionError,
    StateError,
)
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.convert import ExecExited
from boxlite._rpc.execution import END_SECONDS, START_SECONDS, RawExecution
from boxlite._wire import MAX_MESSAGE_BYTES, OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite._rpc.session import GuestSession


async def read_all(raw: RawExecution) -> bytes:
    """Return what comes on stdout until the end."""
    data = bytearray()
    while chunk := await raw.receive(Channel.STDOUT):
        data += chunk
    return bytes(data)


async def test_a_command_starts_and_exits() -> None:
    """Its process id and its exit are what the guest said."""
    async with connected() as (session, guest):
        guest.script = true
        async with session.execute(command()) as raw:
            assert await raw.wait_started() == 7
            assert await raw.wait() == ExecExited(0, 0)
            assert await raw.receive(Channel.STDOUT) == b""
            assert await raw.receive(Channel.STDERR) == b""

        assert guest.cut_off == 0
        assert session.open_calls == 0


async def test_the_guest_gets_the_command_as_it_was_given() -> None:
    """Arguments, environment, directory, terminal and windows."""
    seen: list[wire.ExecStart] = []

    async def script(call: Call) -> None:
        seen.append(call.start)
        await true(call)

    async with connected() as (session, guest):
        guest.script = script
        asked = command(
            b"sh",
            b"\xff",
            env=((b"A", b"=1"),),
            cwd=b"/tmp",
            terminal=TerminalSize(rows=3, columns=4),
        )
        async with session.execute(asked) as raw:
            await raw.wait()

    assert seen == [
        wire.ExecStart(
            argv=[b"sh", b"\xff"],
            env=[wire.EnvironmentVariable(name=b"A", value=b"=1")],
            cwd=b"/tmp",
            terminal=wire.TerminalSize(rows=3, columns=4),
            stdout_window=OUTPUT_WINDOW_BYTES,
            stderr_window=OUTPUT_WINDOW_BYTES,
        )
    ]


async def test_much_data_passes_both_windows_unharmed() -> None:
    """Several times the window, sent and received at the same time."""
    data = random.Random(1).randbytes(5 * STDIN_WINDOW_BYTES + 17)
    async with connected() as (session, _), session.execute(command()) as raw:
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                await raw.send_stdin(data)
                await raw.close_stdin()

            nursery.start_soon(feed)
            echoed = await read_all(raw)

        assert echoed == data
        assert await raw.wait() == ExecExited(0, 0)


async def test_send_stdin_waits_when_nobody_reads_the_output() -> None:
    """What lies between sender and reader is bounded by the two windows."""
    async with connected() as (session, _), session.execute(command()) as raw:
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raw.send_stdin, bytes(8 * STDIN_WINDOW_BYTES))
                await trio.testing.wait_all_tasks_blocked()
                held = len(raw._talk.inboxes[Channel.STDOUT])
                scope.cancel()

        assert held == OUTPUT_WINDOW_BYTES
        await session.ping()


async def test_output_is_there_after_the_exit() -> None:
    """The exit overtakes nothing: unread output is taken first, then the end is seen."""

    async def script(call: Call) -> None:
        await call.say_started()
        call.write(Channel.STDOUT, b"out")
        call.write(Channel.STDERR, b"err")
        await call.say_exited(3)

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            assert await raw.wait() == ExecExited(3, 0)
            assert await raw.receive(Channel.STDOUT, 2) == b"ou"
            assert await raw.receive(Channel.STDOUT) == b"t"
            assert await raw.receive(Channel.STDOUT) == b""
            assert await raw.receive(Channel.STDERR) == b"err"
            assert await raw.receive(Channel.STDERR) == b""


async def test_a_stream_that_nobody_reads_does_not_hold_up_the_other() -> None:
    """Each has its window."""

    async def script(call: Call) -> None:
        await call.say_started()
        for _ in range(2):
            call.write(Channel.STDOUT, bytes(OUTPUT_WINDOW_BYTES // 2))
        room, piece = OUTPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES // 4
        for _ in range(12):
            call.write(Channel.STDERR, b"e" * piece)
            room -= piece
            while room < piece:
                heard = await call.hear()
                assert isinstance(heard, Room)
                assert heard.channel is Channel.STDERR
                room += heard.size
        await call.say_exited()

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            total = 0
            while data := await raw.receive(Channel.STDERR):
                total += len(data)

    assert total == 3 * OUTPUT_WINDOW_BYTES


async def test_actions_arrive_in_the_order_in_which_they_were_taken() -> None:
    """A signal after some input is a signal after that input."""
    heard: list[Frame] = []

    async def script(call: Call) -> None:
        await call.say_started()
        while len(heard) < 5:
            heard.append(await call.hear())
        await call.say_exited(signal=15)

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            await raw.wait_started()
            await raw.send_stdin(b"a")
            await raw.resize(5, 6)
            await raw.send_stdin(memoryview(b"b"))
            await raw.close_stdin()
            await raw.send_signal(15)
            assert await raw.wait() == ExecExited(0, 15)

    call = heard[0].call
    assert heard == [
        Piece(call, Channel.STDIN, memoryview(b"a")),
        Resize(call, 5, 6),
        Piece(call, Channel.STDIN, memoryview(b"b")),
        Piece(call, Channel.STDIN, memoryview(b"")),
        Signal(call, 15),
    ]


async def test_after_the_exit_input_is_refused_and_the_rest_is_ignored() -> None:
    """As with a process on the host."""
    async with connected() as (session, guest):
        guest.script = true
        async with session.execute(command()) as raw:
            await raw.wait()
            with pytest.raises(trio.BrokenResourceError):
                await raw.send_stdin(b"x")
            await raw.send_signal(9)
            await raw.resize(1, 1)
            await raw.close_stdin()


async def test_input_that_waits_for_room_learns_of_the_exit() -> None:
    """A command that never reads may still end."""

    async def script(call: Call) -> None:
        await call.say_started()
        await call.hear()
        await call.say_exited()

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            with pytest.raises(trio.BrokenResourceError):
                await raw.send_stdin(bytes(STDIN_WINDOW_BYTES + 1))


async def test_input_after_its_end_is_the_callers_mistake() -> None:
    """Also for a task that is still waiting to send."""
    async with connected() as (session, _), session.execute(command()) as raw:
        await raw.close_stdin()
        await raw.close_stdin()
        with pytest.raises(trio.ClosedResourceError):
            await raw.send_stdin(b"x")


async def test_two_tasks_cannot_share_a_direction() -> None:
    """Whose bytes would be whose?"""
    async with (
        connected() as (session, _),
        session.execute(command()) as raw,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(raw.receive, Channel.STDOUT)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="stdout"):
            await raw.receive(Channel.STDOUT)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("reason", "exit_code", "words"),
    [
        (wire.RefusalReason.PROGRAM_NOT_FOUND, 127, r"the program was not found: no 'x\\x07'"),
        (wire.RefusalReason.NOT_EXECUTABLE, 126, "cannot be executed"),
        (wire.RefusalReason.CWD_NOT_FOUND, 125, "the directory to run in"),
        (wire.RefusalReason.RESOURCES, 125, "not enough resources"),
        (wire.RefusalReason.INVALID, 125, "does not accept"),
    ],
)
async def test_a_refused_command_is_an_error_of_its_own(
    reason: wire.RefusalReason, exit_code: int, words: str
) -> None:
    """Every method tells it, and each time with an exception of its own."""

    async def script(call: Call) -> None:
        await call.say(refused=wire.ExecRefused(reason=reason, detail="no 'x\a'"))

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            with pytest.raises(ExecStartError, match=words) as first:
                await raw.wait_started()
            with pytest.raises(ExecStartError, match=words) as second:
                await raw.wait()

            assert first.value.exit_code == second.value.exit_code == exit_code
            assert first.value is not second.value


async def test_leaving_early_ends_the_call_and_tells_the_guest() -> None:
    """Which is how the guest knows to kill the command."""
    async with connected() as (session, guest):
        async with session.execute(command()) as raw:
            await raw.wait_started()
        await session.ping()

        assert guest.cut_off == 1
        assert session.open_calls == 0
        with pytest.raises(StateError, match="left"):
            await raw.wait()


async def test_an_exec_that_the_guest_ignores_times_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Neither started nor refused is not an answer."""

    async def script(_call: Call) -> None:
        await asyncio.Event().wait()

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            began = trio.current_time()
            with pytest.raises(GuestTimeoutError, match="neither started nor refused"):
                await raw.wait_started()

            assert trio.current_time() - began == pytest.approx(START_SECONDS)
        await session.ping()


async def test_an_exit_counts_only_with_the_end_of_the_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Otherwise a command that is over could still write."""

    async def script(call: Call) -> None:
        await true(call)
        await asyncio.Event().wait()

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            await raw.wait_started()
            began = trio.current_time()
            with pytest.raises(GuestTimeoutError, match="kept the call open"):
                await raw.wait()

            assert trio.current_time() - began == pytest.approx(END_SECONDS)
        await session.ping()


async def test_a_running_command_has_no_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A day is fine."""
    day = 86_400
    async with connected(cap=2 * day) as (session, _), session.execute(command()) as raw:
        await raw.wait_started()
        await trio.sleep(day)
        await raw.send_stdin(b"still there?")

        assert await raw.receive(Channel.STDOUT) == b"still there?"


async def test_an_agent_that_fails_is_told_as_such() -> None:
    """A status in place of an exit is an error; the output before it is not lost."""

    async def script(call: Call) -> None:
        await call.say_started()
        call.write(Channel.STDOUT, b"last words")
        await call.stream.send_trailing_metadata(status=Status.INTERNAL, status_message="x")

    async with connected() as (session, guest):
        guest.script = script
        async with session.execute(command()) as raw:
            assert await raw.receive(Channel.STDOUT) == b"last words"
            with pytest.raises(GuestFailedError, match="INTERNAL") as caught:
                await raw.wait()

        assert caught.value.status == "INTERNAL"
        await session.ping()


async def test_a_lost_guest_is_told_by_every_method() -> None:
    """Nobody waits for what cannot come; what came before is still there."""
    async with connected() as (session, _), session.execute(command()) as raw:
        await raw.send_stdin(b"echo")
        await trio.testing.wait_all_tasks_blocked()
        session._link.channel._transport.close()
        assert await raw.receive(Channel.STDOUT) == b"echo"
        for use in (
            raw.wait,
            lambda: raw.receive(Channel.STDOUT),
            lambda: raw.send_stdin(b"x"),
            lambda: raw.send_signal(9),
            raw.close_stdin,
        ):
            with pytest.raises(GuestLostError, match="may or may not"):
                await use()


@pytest.mark.parametrize(
    ("field", "use"),
    [
        ("signal", lambda raw: raw.send_signal(0)),
        ("signal", lambda raw: raw.send_signal(65)),
        ("rows", lambda raw: raw.resize(0, 1)),
        ("columns", lambda raw: raw.resize(1, 65_536)),
        ("max_bytes", lambda raw: raw.receive(Channel.STDOUT, 0)),
    ],
)
async def test_a_bad_argument_is_named(
    field: str, use: Callable[[RawExecution], Awaitable[object]]
) -> None:
    """And does not disturb the command."""
    async with connected() as (session, _), session.execute(command()) as raw:
        with pytest.raises(InvalidOptionError) as caught:
            await use(raw)

        assert caught.value.field == field
        await raw.close_stdin()
        assert await raw.wait() == ExecExited(0, 0)


async def test_a_command_too_large_for_a_message_is_refused_here() -> None:
    """Rather than by a guest that ends the connection."""
    async with connected() as (session, _):
        with pytest.raises(InvalidOptionError, match="at most 1048576 bytes"):
            async with session.execute(command(b"x" * MAX_MESSAGE_BYTES)):
                raise AssertionError("not reached")
        await session.ping()


async def test_cancelling_anything_at_any_time_disturbs_nothing_else() -> None:
    """Two hundred commands, each cut off after a random number of steps."""
    chance = random.Random(13)
    async with connected() as (session, guest):
        for _ in range(200):
            guest.script = chance.choice([cat, cat, true])
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_use, session, scope, chance)
                for _ in range(chance.randrange(120)):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        pong = await session.ping(b"alive")
        await trio.testing.wait_all_tasks_blocked()

        assert pong.payload == b"alive"
        assert session.open_calls == 0
        assert guest.running == 0


async def _use(session: GuestSession, scope: trio.CancelScope, chance: random.Random) -> None:
    with scope:
        await session.ping(b"before")
        async with session.execute(command()) as raw, trio.open_nursery() as nursery:
            nursery.start_soon(read_all, raw)
            try:
                await raw.send_stdin(bytes(chance.randrange(1, 3 * STDIN_WINDOW_BYTES)))
            except trio.BrokenResourceError:
                assert (await raw.wait()).exit_code == 0
            await raw.close_stdin()
            await raw.wait()
