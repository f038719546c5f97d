"""Calls of one question and one answer, and the life of a session."""

from __future__ import annotations

import ast
import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_guest import BOOT_ID, NONCE, command, connected, unanswered
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import boxlite._rpc
from boxlite._bulk import Channel
from boxlite._errors import (
    GuestFailedError,
    GuestLostError,
    GuestProtocolError,
    GuestTimeoutError,
    InternalError,
    InvalidOptionError,
)
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.convert import GuestInfo, Pong
from boxlite._rpc.session import GuestSession, open_session, serve_session
from boxlite._volume import Volume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def test_the_guest_says_what_it_is() -> None:
    """The answer is the domain's class."""
    async with connected() as (session, _):
        info = await session.info()

    assert info == GuestInfo(
        agent_version="0.1.0", kernel_release="6.1.0", boot_id=BOOT_ID, memory_total_kib=262_144
    )


async def test_a_refusal_has_its_status_and_cannot_write_to_the_terminal() -> None:
    """The guest's words are shown, its escape sequences are not obeyed."""
    async with connected() as (session, guest):
        guest.refusal = "not \x1b[31mnow"
        with pytest.raises(GuestFailedError, match=r"Info: not \\x1b\[31mnow") as caught:
            await session.info()

    assert caught.value.status == "FAILED_PRECONDITION"
    assert caught.value.__cause__ is not None


async def test_ping_echoes_and_shutdown_counts() -> None:
    """The two other calls do what they say."""
    async with connected() as (session, _):
        assert await session.ping(b"12") == Pong(
            payload=b"12", boot_id=BOOT_ID, uptime_ms=1, executions=0
        )
        assert await session.shutdown(grace=0.5) == 0


async def test_a_guest_is_told_what_to_set_up() -> None:
    """Each field as it was meant; a box without an image has none, whatever else it has."""
    async with connected() as (session, guest):
        await session.set_up(working_directory=None)
        await session.set_up(
            working_directory="/srv/\xe4",
            volumes=[
                ("volume0", Volume("/a", "/data", read_only=False), ""),
                ("volume1", Volume("/b", "/etc/app.conf"), "app.conf"),
            ],
            limits=[(7, 1024, (1 << 64) - 1), (4, 0, 0)],
        )

    nothing, everything = guest.set_ups
    assert nothing == wire.SetUpRequest()
    assert nothing.image is None
    assert everything == wire.SetUpRequest(
        image=wire.ImageRoot(working_directory="/srv/\xe4".encode()),
        volumes=[
            wire.VolumeMount(tag="volume0", path=b"/data"),
            wire.VolumeMount(
                tag="volume1", path=b"/etc/app.conf", read_only=True, file=b"app.conf"
            ),
        ],
        limits=[
            wire.ResourceLimit(resource=7, soft=1024, hard=(1 << 64) - 1),
            wire.ResourceLimit(resource=4),
        ],
    )


async def test_a_root_directory_is_not_no_image() -> None:
    """Both are little on the wire."""
    async with connected() as (session, guest):
        await session.set_up(working_directory="")

    assert guest.set_ups == [wire.SetUpRequest(image=wire.ImageRoot())]
    assert guest.set_ups[0].image is not None


async def _refuse() -> None:
    raise GRPCError(Status.FAILED_PRECONDITION, "/data: \x1b[31mNo such device")


async def test_a_guest_that_is_not_set_up_says_so() -> None:
    """In its words, made harmless; the call is over, and the session goes on."""
    async with connected() as (session, guest):
        guest.set_up_script = _refuse
        with pytest.raises(GuestFailedError, match=r"SetUp: /data: \\x1b\[31mNo such") as caught:
            await session.set_up(working_directory="/")

        assert caught.value.status == "FAILED_PRECONDITION"
        assert session.open_calls == 0
        await session.ping()


async def _say_too_much() -> None:
    raise GRPCError(Status.INTERNAL, "x" * 100_000)


async def _say_nonsense() -> None:
    """Have the answer be a message that ends in the middle of a field."""


@pytest.mark.parametrize("script", [_say_too_much, _say_nonsense])
async def test_an_answer_that_is_none_is_a_breach(
    monkeypatch: pytest.MonkeyPatch, script: Callable[[], Awaitable[None]]
) -> None:
    """Bounded as every answer is, and checked as a message."""
    async with connected() as (session, guest):
        guest.set_up_script = script
        monkeypatch.setattr(wire.SetUpResponse, "__bytes__", lambda _: b"\x0a\x7f")
        with pytest.raises(GuestProtocolError) as caught:
            await session.set_up(working_directory=None)

        assert len(str(caught.value)) < 1000
        assert session.open_calls == 0


async def test_a_guest_that_never_is_done_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Growing a large file system takes its time, and that is bounded."""
    async with connected() as (session, guest):
        await session.ping()
        guest.set_up_script = partial(_never, None)
        with pytest.raises(GuestTimeoutError, match=r"SetUp: .* within 30 s"):
            await session.set_up(working_directory="/")

        assert session.open_calls == 0


async def test_many_calls_at_once_share_the_connection() -> None:
    """Calls do not wait for each other."""
    async with connected() as (session, _), trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(session.ping, str(number).encode())


async def test_a_task_from_before_the_session_may_call() -> None:
    """Its context knows no event loop; the call must not look for one there."""
    send, receive = trio.open_memory_channel[GuestSession](0)
    answers = []

    async def call() -> None:
        session = await receive.receive()
        answers.append(await session.ping(b"x"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        async with connected() as (session, _):
            await send.send(session)
            await trio.testing.wait_all_tasks_blocked()

    assert answers[0].payload == b"x"


async def test_silence_is_a_timeout_of_ours(autojump_clock: trio.testing.MockClock) -> None:
    """And not a ``TooSlowError``, which somebody else's handler would swallow."""
    async with unanswered() as (session, _):
        with pytest.raises(GuestTimeoutError, match=r"Ping: .* within 5 s") as caught:
            await session.ping()

        assert not isinstance(caught.value, (trio.TooSlowError, TimeoutError))
        assert session.open_calls == 0


async def test_a_cancelled_call_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No stream stays open, the guest's handler ends, and the next call works."""
    async with connected() as (session, guest):
        await session.ping()
        guest.script = _never
        with trio.move_on_after(1) as scope:
            async with session.execute(command()) as raw:
                await raw.wait_started()
        assert scope.cancelled_caught
        await session.ping()

        assert guest.cut_off == 1
        assert session.open_calls == 0


async def _never(call: object) -> None:
    await asyncio.Event().wait()


async def test_the_guests_end_is_told_to_those_who_wait_and_to_those_who_come() -> None:
    """A call under way may have run; one that comes later was not sent."""
    async with unanswered() as (session, theirs), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(GuestLostError, match="may or may not have been carried out"):
                await session.ping()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
        error = await session.lost.wait()

        assert session.lost.is_set()
        assert str(error) == "the guest closed the connection"
        assert repr(session) == "<GuestSession lost>"
        assert session.open_calls == 0
        with pytest.raises(GuestLostError, match="it was not sent"):
            await session.ping()
        with pytest.raises(GuestLostError, match="it was not sent"):
            async with session.execute(command()) as raw:
                await raw.wait_started()


async def test_serve_session_returns_when_the_guest_has_gone() -> None:
    """A loss is told through ``lost``; it does not end the nursery."""
    ours, theirs = trio.testing.memory_stream_pair()
    returned = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[GuestSession]) -> None:
            await serve_session(ours, NONCE, task_status=task_status)
            returned.set()

        session: GuestSession = await nursery.start(serve)
        await theirs.aclose()
        await returned.wait()

        assert isinstance(session.lost.error, GuestLostError)


async def test_calls_that_outlive_their_session_end_with_it() -> None:
    """The event loop closes under them, and they must not wait for ever."""
    ended = []

    async def call(use: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(GuestLostError, match="the session with the guest was closed"):
            await use()
        ended.append(1)

    async with trio.open_nursery() as nursery:
        async with unanswered() as (session, _):
            raw = await nursery.start(_hold_execution, session)
            receive = partial(raw.receive, Channel.STDOUT)
            for use in (session.ping, raw.wait, raw.wait_started, receive):
                nursery.start_soon(call, use)
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert len(ended) == 4


async def _hold_execution(session: GuestSession, *, task_status: trio.TaskStatus[object]) -> None:
    async with session.execute(command()) as raw:
        task_status.started(raw)
        await trio.sleep_forever()


async def test_leaving_a_session_closes_its_stream() -> None:
    """The guest sees the end of the connection at once."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with open_session(ours, nonce=NONCE):
        await trio.testing.wait_all_tasks_blocked()
    while await theirs.receive_some():
        pass

    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_a_cancelled_session_is_over_and_the_stream_closed() -> None:
    """Cancellation comes through as itself."""
    ours, _theirs = trio.testing.memory_stream_pair()
    with trio.CancelScope() as scope:
        async with open_session(ours, nonce=NONCE) as session:
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert session.lost.is_set()
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


async def test_an_error_of_the_block_is_not_wrapped() -> None:
    """Users catch what they raised, though two nurseries and a loop lie in between."""
    error = KeyError("mine")

    async def fail() -> None:
        async with connected() as (session, _), session.execute(command()) as raw:
            await raw.wait_started()
            raise error

    with pytest.raises(KeyError) as caught:
        await fail()

    assert caught.value is error


async def test_a_failing_callback_of_the_loop_ends_this_session_only() -> None:
    """trio-asyncio would raise it from the loop, into whoever holds the nursery."""
    async with connected() as (healthy, _), connected() as (session, _):
        loop = session._link._loop

        def fail() -> None:
            raise ZeroDivisionError

        loop.call_soon(fail)  # type: ignore[attr-defined]
        error = await session.lost.wait()

        assert isinstance(error, InternalError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        with pytest.raises(InternalError):
            await session.ping()
        await healthy.ping()


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("payload", lambda s: s.ping(bytes(1025))),
        ("grace", lambda s: s.shutdown(grace=11)),
    ],
)
async def test_a_bad_argument_is_named_and_not_sent(
    field: str, call: Callable[[GuestSession], Awaitable[object]]
) -> None:
    """The guest is not asked to find the host's mistakes."""
    async with unanswered() as (session, theirs):
        await trio.testing.wait_all_tasks_blocked()
        preface = len(await theirs.receive_some())
        with pytest.raises(InvalidOptionError) as caught:
            await call(session)
        await trio.testing.wait_all_tasks_blocked()

        assert preface > 0
        assert caught.value.field == field
        assert session.open_calls == 0


async def test_two_sessions_live_side_by_side() -> None:
    """The end of one is not the end of the other."""
    async with connected() as (healthy, _):
        async with connected() as (other, _):
            await other.ping()
        await healthy.ping()


def test_the_package_itself_is_a_docstring() -> None:
    """The guest imports it for its messages, where there is no trio."""
    assert boxlite._rpc.__file__ is not None
    body = ast.parse(Path(boxlite._rpc.__file__).read_text()).body

    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
