"""From the death of a shim or a VM to the error in the user's hands.

The clock starts right before the SIGKILL is sent, in the same process, and
stops when the ``except`` clause has the error, report and all.
"""

from __future__ import annotations

import select
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import boxlite
from boxlite._layout import BoxLayout
from boxlite._process import ExitWatch, read_pid_file
from boxlite._startup.crash import Circumstances
from boxlite._startup.ready import ReadySocket, UnixTransport, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .harness import Series


@contextmanager
def _sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            yield child
        finally:
            child.kill()


def _bare_pidfd() -> float:
    """Return how long the kernel alone takes: SIGKILL to a readable pidfd, no Trio."""
    with _sleeper() as child, ExitWatch(child.pid) as watch:
        assert watch._fd is not None
        poll = select.poll()
        poll.register(watch._fd, select.POLLIN)
        began = perf_counter()
        child.kill()
        poll.poll()
        return perf_counter() - began


async def _race(layout: BoxLayout) -> float:
    """Return how long the startup race takes to raise, once its shim is killed."""
    listener = ReadySocket(UnixTransport(layout.ready_socket), nonce="0" * 32)
    began = 0.0
    with _sleeper() as child, ExitWatch(child.pid) as watch:

        async def kill() -> None:
            nonlocal began
            await trio.testing.wait_all_tasks_blocked()
            began = perf_counter()
            child.kill()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            try:
                await wait_until_ready(
                    listener,
                    shim=watch,
                    reap=child.poll,
                    seconds=30,
                    about=Circumstances(box_id="bench", layout=layout, **_known_before()),
                )
            except boxlite.BoxStartError:
                seconds = perf_counter() - began
            finally:
                listener.close()
    return seconds


def _known_before() -> dict[str, Any]:
    """Return what a start knows beforehand; a tree that is compared with may know less."""
    try:
        from boxlite._startup.hostmemory import oom_kills  # noqa: PLC0415 - see above
    except ImportError:
        return {}
    return {"oom_kills": oom_kills()}


async def race_death(rounds: int) -> Series:
    """Measure the race against the kernel's own latency."""
    series: Series = {"bare pidfd, no Trio (baseline)": [], "shim killed to BoxStartError": []}
    bare, race = series.values()
    with tempfile.TemporaryDirectory() as directory:
        layout = BoxLayout(Path(directory))
        layout.sockets.mkdir()
        for _ in range(rounds):
            bare.append(_bare_pidfd())
            race.append(await _race(layout))
    return series


async def vm_death(rounds: int) -> Series:
    """Measure a real box's death during a command.

    How long the kernel takes to end QEMU, with all its memory, is not ours, and is
    measured for itself; what is told of a death counts from there.
    """
    series: Series = {"bare pidfd, no Trio (baseline)": []}
    for victim in ("QEMU", "shim"):
        for interval in (
            f"{victim} killed to {victim} dead (the kernel)",
            f"{victim} dead to the block's cancellation",
            f"{victim} dead to BoxCrashedError, box tidied",
        ):
            series[interval] = []
    bare, *intervals = series.values()
    async with boxlite.open_runtime() as runtime:
        for _ in range(rounds):
            bare.append(_bare_pidfd())
            measured = [
                *await _crash(runtime, kill_shim=False),
                *await _crash(runtime, kill_shim=True),
            ]
            for samples, seconds in zip(intervals, measured, strict=True):
                samples.append(seconds)
    return series


async def _crash(runtime: boxlite.Runtime, *, kill_shim: bool) -> tuple[float, float, float]:
    """Kill a box; return the seconds to its death, and from there to cancellation and error."""
    killed = died = cancelled = 0.0
    try:
        async with runtime.open_box(ready_timeout=120) as box:
            layout = runtime.home.box(box.id)
            victim = read_pid_file(layout.shim_pid if kill_shim else layout.vm_pid)
            async with box.exec(["sleep", "1000"]):
                with ExitWatch.of(victim) as watch:
                    killed = perf_counter()
                    watch.send_signal(signal.SIGKILL)
                    try:
                        await watch.wait()
                        died = perf_counter()
                        await trio.sleep_forever()
                    finally:
                        cancelled = perf_counter()
    except boxlite.BoxCrashedError:
        # Cancelled before this task was told of the death: then it was no later.
        died = died or cancelled
        return died - killed, cancelled - died, perf_counter() - died
    raise AssertionError("the box survived")
