"""The startup race, through every order of its contenders, on a clock that jumps.

What must come out is worked out by :func:`verdicts` from the times alone; the rule
is the one in the docstring of ``boxlite/_startup/ready.py``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio
import trio.testing
from hypothesis import event, example, given, settings, strategies as st

from boxlite import BoxStartError, BoxStartTimeoutError
from boxlite._layout import BoxLayout
from boxlite._process import ExitWatch
from boxlite._sockets import connect_unix
from boxlite._startup.crash import Circumstances
from boxlite._startup.ready import ReadySocket, UnixTransport, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NONCE: Final = "0123456789abcdef0123456789abcdef"
NEVER: Final = 1000.0

moments = st.one_of(st.just(NEVER), st.sampled_from([1.0, 2.0, 3.0]))


@attrs.frozen(kw_only=True)
class Times:
    """When each thing happens; all of them at three moments, so that they collide."""

    ready: float
    ended: float
    deadline: float
    cancelled: float


deadlines = st.sampled_from([1.0, 2.0, 3.0])
times = st.builds(Times, ready=moments, ended=moments, deadline=deadlines, cancelled=moments)


def verdicts(at: Times, *, announcing_takes_time: bool) -> set[str]:
    """Return what the race may come to: one thing, or two when a cancellation meets the end.

    Args:
        at: When everything happens.
        announcing_takes_time: A real announcement takes some ticks from its beginning on.
    """
    decided = min(at.ready, at.ended, at.deadline)
    if at.ended <= decided:
        verdict = "died"
    elif announcing_takes_time and at.deadline <= at.ready:
        verdict = "late"
    else:
        verdict = "ready" if at.ready <= decided else "late"
    if at.cancelled < decided:
        return {"cancelled"}
    return {verdict, "cancelled"} if at.cancelled == decided else {verdict}


async def outcome(wait: Callable[[], Awaitable[None]], cancelled: float) -> str:
    """Return in one word how a wait ended."""
    with trio.move_on_at(cancelled):
        try:
            await wait()
        except BoxStartTimeoutError:
            return "late"
        except BoxStartError:
            return "died"
        return "ready"
    return "cancelled"


def run(main: Callable[[], Awaitable[str]]) -> str:
    """Run one race on a clock of its own, and prove that it leaves no descriptor."""
    before = set(os.listdir("/proc/self/fd"))

    async def bounded() -> str:
        with trio.fail_after(NEVER - 1):
            return await main()

    result: str = trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))
    assert set(os.listdir("/proc/self/fd")) == before
    return result


class MemoryListener:
    """An announcement that comes at a time, without a socket."""

    def __init__(self, at: float) -> None:
        self._at = at
        self.announced = False

    async def wait_announced(self) -> None:
        """Return at that time."""
        await trio.sleep_until(self._at)
        self.announced = True


class MemoryWatch:
    """A shim that ends at a time, without a process."""

    def __init__(self, at: float) -> None:
        self._at = at

    async def wait(self) -> None:
        """Return at that time."""
        await trio.sleep_until(self._at)

    def has_ended(self) -> bool:
        """Tell whether it has come."""
        return trio.current_time() >= self._at


@settings(max_examples=400, deadline=None)
@given(times)
@example(Times(ready=1, ended=1, deadline=1, cancelled=NEVER))
@example(Times(ready=1, ended=NEVER, deadline=1, cancelled=NEVER))
@example(Times(ready=NEVER, ended=1, deadline=1, cancelled=1))
def test_every_order_has_one_end(at: Times) -> None:
    """In memory, where all four can happen in one tick of the scheduler."""

    async def main() -> str:
        with tempfile.TemporaryDirectory() as directory:

            async def wait() -> None:
                await wait_until_ready(
                    cast("ReadySocket", MemoryListener(at.ready)),
                    shim=cast("ExitWatch", MemoryWatch(at.ended)),
                    reap=lambda: None,
                    seconds=at.deadline,
                    about=Circumstances(box_id="b", layout=BoxLayout(Path(directory))),
                )

            return await outcome(wait, at.cancelled)

    found = run(main)
    event(found)
    assert found in verdicts(at, announcing_takes_time=False)


async def connect(path: Path, greeting: bytes, *, linger: float, reset: bool) -> None:
    """Connect to the ready socket, say something, stay a while, and hang up."""
    # The race may be over, and the socket gone with it.
    with suppress(OSError, trio.BrokenResourceError):
        async with await connect_unix(path) as stream:
            if greeting:
                await stream.send_all(greeting)
            await trio.sleep(linger)
            if reset:
                linger_off = b"\1\0\0\0\0\0\0\0"
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)


greetings = st.one_of(
    st.just(b""),
    st.just(b"ready " + b"f" * 32 + b"\n"),
    st.just(f"ready {NONCE}".encode()),
    st.just(f"\nready {NONCE}\n".encode()),
    st.binary(max_size=100).filter(lambda data: not data.startswith(b"ready 0123")),
)
strangers = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.sampled_from([0.0, 1.0, 2.0]),
            "greeting": greetings,
            "linger": st.sampled_from([0.0, 0.5, 5.0]),
            "reset": st.booleans(),
        }
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(times, strangers)
def test_strangers_change_nothing_about_any_order(
    at: Times, intruders: list[dict[str, Any]]
) -> None:
    """With a real socket, a real process, and others who connect to the socket meanwhile."""

    async def main() -> str:
        with tempfile.TemporaryDirectory() as directory:
            layout = BoxLayout(Path(directory))
            layout.sockets.mkdir()
            listener = ReadySocket(UnixTransport(layout.ready_socket), nonce=NONCE)
            child = subprocess.Popen(["sleep", "1000"])
            try:
                with ExitWatch(child.pid) as shim:
                    async with trio.open_nursery() as nursery:

                        async def announce() -> None:
                            await trio.sleep_until(at.ready)
                            greeting = f"ready {NONCE}\n".encode()
                            await connect(layout.ready_socket, greeting, linger=1, reset=False)

                        async def die() -> None:
                            await trio.sleep_until(at.ended)
                            child.send_signal(signal.SIGKILL)
                            # Death takes a moment of real time, which this clock does not have.
                            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

                        async def intrude(at: float, **how: Any) -> None:  # noqa: ANN401
                            await trio.sleep_until(at)
                            await connect(layout.ready_socket, **how)

                        nursery.start_soon(announce)
                        nursery.start_soon(die)
                        for intruder in intruders:
                            nursery.start_soon(lambda how: intrude(**how), intruder)

                        async def wait() -> None:
                            await wait_until_ready(
                                listener,
                                shim=shim,
                                reap=child.poll,
                                seconds=at.deadline,
                                about=Circumstances(box_id="b", layout=layout),
                            )

                        result = await outcome(wait, at.cancelled)
                        nursery.cancel_scope.cancel()
                    return result
            finally:
                listener.close()
                child.kill()
                child.wait()

    found = run(main)
    event(found)
    allowed = verdicts(at, announcing_takes_time=True)
    # A death in the tick of the deadline or the announcement is seen in it, or a moment later.
    if at.ended == min(at.ready, at.deadline):
        allowed |= verdicts(attrs.evolve(at, ended=NEVER), announcing_takes_time=True)
    assert found in allowed
