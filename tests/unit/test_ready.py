"""The race between ready, exit and deadline: the seed's cases, and the orderings."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from boxlite import BoxStartError, BoxStartTimeoutError, CrashKind, InvalidOptionError
from boxlite._layout import BoxLayout
from boxlite._process import ExitWatch
from boxlite._sockets import connect_unix
from boxlite._startup.crash import Circumstances
from boxlite._startup.ready import (
    Outcome,
    ReadySocket,
    UnixTransport,
    VsockTransport,
    race,
    wait_until_ready,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

NONCE = "0123456789abcdef0123456789abcdef"
NO_SUCH_PID = 999_999_999


@pytest.fixture
def layout(tmp_path: Path) -> BoxLayout:
    """A box directory with nothing in it but the sockets' directory."""
    layout = BoxLayout(tmp_path)
    layout.sockets.mkdir()
    return layout


@pytest.fixture
async def listener(layout: BoxLayout) -> AsyncIterator[ReadySocket]:
    """A bound ready socket."""
    listener = ReadySocket(UnixTransport(layout.ready_socket), nonce=NONCE)
    yield listener
    listener.close()


async def announce(layout: BoxLayout, greeting: bytes = f"ready {NONCE}\n".encode()) -> None:
    """Connect to the ready socket as a shim does."""
    async with await connect_unix(layout.ready_socket) as stream:
        await stream.send_all(greeting)
        # The listener closes its end when it has made up its mind.
        assert await stream.receive_some() == b""


async def wait_ready(
    listener: ReadySocket, layout: BoxLayout, shim: ExitWatch | None = None, seconds: float = 60
) -> None:
    """Wait as the pipeline does."""
    await wait_until_ready(
        listener,
        shim=shim,
        reap=lambda: None,
        seconds=seconds,
        about=Circumstances(box_id="test-box", layout=layout),
    )


async def test_a_genuine_announcement_is_success(listener: ReadySocket, layout: BoxLayout) -> None:
    """The guest is ready when the shim has said so with this start's nonce."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce, layout)
            await wait_ready(listener, layout)


def test_a_transport_that_is_not_unix_is_refused(tmp_path: Path) -> None:
    """Nothing else can carry the signal, and that is said at once."""
    with pytest.raises(InvalidOptionError, match="must be a UnixTransport"):
        ReadySocket(VsockTransport(cid=3, port=2695), nonce=NONCE)


async def test_a_stale_socket_is_replaced(layout: BoxLayout) -> None:
    """What an earlier start left there does not stop this one."""
    layout.ready_socket.write_bytes(b"stale")
    listener = ReadySocket(UnixTransport(layout.ready_socket), nonce=NONCE)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(announce, layout)
                await wait_ready(listener, layout)
    finally:
        listener.close()

    assert not layout.ready_socket.exists()


async def test_the_shims_death_is_told_as_a_failed_start(
    listener: ReadySocket, layout: BoxLayout
) -> None:
    """A dead shim wins long before the deadline, and the error names the box."""
    with ExitWatch(NO_SUCH_PID) as shim, trio.fail_after(5):
        with pytest.raises(BoxStartError, match="test-box failed to start") as caught:
            await wait_ready(listener, layout, shim)

    assert caught.value.report.kind is CrashKind.SHIM_LOST
    assert not isinstance(caught.value, BoxStartTimeoutError)


async def test_without_a_shim_only_the_deadline_ends_the_wait(
    listener: ReadySocket, layout: BoxLayout, autojump_clock: trio.testing.MockClock
) -> None:
    """An unknown process never wins; the report then tells what was seen."""
    with pytest.raises(BoxStartTimeoutError, match="not ready within 30 s") as caught:
        await wait_ready(listener, layout, None, seconds=30)

    assert trio.current_time() == pytest.approx(30, abs=0.1)
    evidence = dict(caught.value.report.evidence)
    assert evidence["ready socket"] == "there"
    assert evidence["shim"] == "unknown"


async def test_a_late_guest_with_a_living_shim_is_told_as_that(
    listener: ReadySocket, layout: BoxLayout, autojump_clock: trio.testing.MockClock
) -> None:
    """It is the first thing that whoever reads the report wants to know."""
    with ExitWatch(os.getpid()) as shim:
        with pytest.raises(BoxStartTimeoutError) as caught:
            await wait_ready(listener, layout, shim, seconds=1)

    assert dict(caught.value.report.evidence)["shim"] == "alive"


async def test_the_exit_code_of_the_shim_is_in_the_report(
    listener: ReadySocket, layout: BoxLayout
) -> None:
    """It is all there is to tell from when the shim left no exit file."""
    with ExitWatch(NO_SUCH_PID) as shim, trio.fail_after(5):
        with pytest.raises(BoxStartError, match="its shim was ended by SIGTERM") as caught:
            await wait_until_ready(
                listener,
                shim=shim,
                reap=lambda: -15,
                seconds=60,
                about=Circumstances(box_id="test-box", layout=layout),
            )

    assert caught.value.report.exit_code == -15


async def test_a_guest_that_said_ready_and_died_is_a_failed_start(
    listener: ReadySocket, layout: BoxLayout
) -> None:
    """Ready wins the race, but the shim is looked at once more after it."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with ExitWatch(child.pid) as shim, trio.fail_after(10):

        class DiesWithItsAnnouncement(ReadySocket):
            async def wait_announced(self) -> None:
                await super().wait_announced()
                child.kill()
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        listener.close()
        fatal = DiesWithItsAnnouncement(UnixTransport(layout.ready_socket), nonce=NONCE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(announce, layout)
                with pytest.raises(BoxStartError):
                    await wait_ready(fatal, layout, shim)
        finally:
            fatal.close()
            child.communicate()


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"\n",
        b"ready\n",
        b"ready " + b"0" * 32 + b"\n",
        NONCE.encode(),
        b"x" * 4096,
        b"\xff\0\n",
    ],
)
async def test_a_stranger_neither_starts_nor_breaks_the_box(
    listener: ReadySocket, layout: BoxLayout, greeting: bytes
) -> None:
    """Only the nonce counts, and the listener goes on after a wrong one."""

    async def stranger() -> None:
        async with await connect_unix(layout.ready_socket) as stream:
            try:
                await stream.send_all(greeting)
                await stream.send_eof()
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass  # closed on us while the greeting was still on its way

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_ready, listener, layout)
            await stranger()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            await announce(layout)


async def test_a_silent_stranger_does_not_hold_up_the_announcement(
    listener: ReadySocket, layout: BoxLayout
) -> None:
    """Connections are greeted side by side, each for a bounded time."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_ready, listener, layout)
            silent = await connect_unix(layout.ready_socket)
            async with silent:
                await trio.testing.wait_all_tasks_blocked()
                await announce(layout)


async def test_a_flood_of_silent_strangers_costs_few_descriptors(
    listener: ReadySocket, layout: BoxLayout, autojump_clock: trio.testing.MockClock
) -> None:
    """They wait in the kernel's queue for their second, and the genuine one gets its turn."""

    async def be_silent() -> None:
        async with await connect_unix(layout.ready_socket) as stream:
            assert await stream.receive_some() == b""

    before = len(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_ready, listener, layout)
        async with trio.open_nursery() as strangers:
            # In two waves, for the kernel's queue holds seventeen.
            for _ in range(2):
                for _ in range(15):
                    strangers.start_soon(be_silent)
                await trio.testing.wait_all_tasks_blocked()
            # Each stranger holds one here too; what is more than that is the listener's.
            assert len(os.listdir("/proc/self/fd")) - before - 30 == 16
        await announce(layout)


async def test_a_very_long_path_can_be_listened_on(tmp_path: Path) -> None:
    """The 108 bytes of a socket's address do not limit where a home may be."""
    deep = tmp_path.joinpath(*["d" * 60] * 5)
    deep.mkdir(parents=True)
    path = deep / "ready.sock"
    assert len(str(path)) > 300
    listener = ReadySocket(UnixTransport(path), nonce=NONCE)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.wait_announced)
                async with await connect_unix(path) as stream:
                    await stream.send_all(f"ready {NONCE}\n".encode())
    finally:
        listener.close()


async def test_cancelling_the_wait_leaves_the_listener_usable(
    listener: ReadySocket, layout: BoxLayout
) -> None:
    """The socket is the caller's, whatever happens to the wait."""
    with trio.move_on_after(0):
        await wait_ready(listener, layout)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce, layout)
            await wait_ready(listener, layout)


@pytest.mark.parametrize("order", list(permutations(Outcome)))
async def test_the_first_to_finish_wins(
    order: tuple[Outcome, ...], autojump_clock: trio.testing.MockClock
) -> None:
    """At different times, time decides, whatever the precedence."""
    at = {outcome: float(place + 1) for place, outcome in enumerate(order)}

    outcome = await race(
        lambda: trio.sleep(at[Outcome.READY]),
        lambda: trio.sleep(at[Outcome.EXIT]),
        deadline=at[Outcome.DEADLINE],
    )

    assert outcome is order[0]


@pytest.mark.parametrize(
    "together",
    [
        {Outcome.READY, Outcome.EXIT},
        {Outcome.READY, Outcome.DEADLINE},
        {Outcome.EXIT, Outcome.DEADLINE},
        {Outcome.READY, Outcome.EXIT, Outcome.DEADLINE},
    ],
)
async def test_in_one_tick_ready_beats_exit_beats_deadline(together: set[Outcome]) -> None:
    """Contenders that have finished before the cancellation reaches them all count."""

    def contender(outcome: Outcome) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            # No checkpoint: like a system call that has succeeded, it cannot be taken back.
            if outcome not in together:
                await trio.sleep_forever()

        return run

    first = next(it for it in (Outcome.READY, Outcome.EXIT, Outcome.DEADLINE) if it in together)
    for _ in range(20):  # Trio shuffles the tasks of a tick
        outcome = await race(
            contender(Outcome.READY),
            contender(Outcome.EXIT),
            deadline=trio.current_time() if Outcome.DEADLINE in together else float("inf"),
        )
        assert outcome is first


async def test_what_a_contender_raises_comes_out_as_it_is() -> None:
    """One error, not a group."""

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        await race(fail, trio.sleep_forever, deadline=float("inf"))


async def test_a_connection_that_cannot_be_accepted_is_a_clear_error(
    listener: ReadySocket, layout: BoxLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of descriptors is told as that, with a fix."""
    from boxlite import HostError

    async def accept() -> tuple[socket.socket, str]:
        await trio.lowlevel.checkpoint()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(listener._socket, "accept", accept)
    with pytest.raises(HostError, match="Too many open files.*ulimit"):
        await wait_ready(listener, layout)


async def test_another_users_announcement_does_not_count(
    listener: ReadySocket, layout: BoxLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with the right nonce: the kernel tells who is at the other end."""
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_ready, listener, layout)
            # It is hung up on without being read, which a peer sees as a reset.
            with pytest.raises(trio.BrokenResourceError):
                await announce(layout)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            assert not listener.announced
            monkeypatch.setattr(os, "geteuid", lambda: real)
            await announce(layout)


async def test_an_announcement_at_the_very_deadline_is_honoured(
    listener: ReadySocket, layout: BoxLayout, autojump_clock: trio.testing.MockClock
) -> None:
    """It was proven; that the deadline's victory was reported first changes nothing."""

    class ProvenTooLate(ReadySocket):
        async def wait_announced(self) -> None:
            await trio.sleep_until(30)
            self.announced = True
            await trio.sleep_forever()

    listener.close()
    late = ProvenTooLate(UnixTransport(layout.ready_socket), nonce=NONCE)
    try:
        await wait_ready(late, layout, seconds=30)
    finally:
        late.close()


async def test_a_connection_that_was_given_up_is_passed_over(
    listener: ReadySocket, layout: BoxLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept(2) says ECONNABORTED, and the next one may be the genuine one."""
    accept = listener._socket.accept
    failures = [ConnectionAbortedError()]

    async def aborted_once() -> object:
        if failures:
            await trio.lowlevel.checkpoint()
            raise failures.pop()
        return await accept()

    monkeypatch.setattr(listener._socket, "accept", aborted_once)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announce, layout)
            await wait_ready(listener, layout)
    assert failures == []
