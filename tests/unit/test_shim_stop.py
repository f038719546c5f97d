"""Ending a VM: the ladder, the end of the host program, and the end of the shim itself."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st
from shim_under_test import LASTING, python, running_shim

from boxlite._process import process_start_time
from boxlite.shim._spawn import Vm
from boxlite.shim._stopping import StopLadder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: A rung that must never be reached by waiting.
NEVER = "3600"
AT_ONCE = "0"

#: Ready, and powers off when it is told to.
OBEDIENT = python(
    "import json, os, sys\n"
    "os.set_blocking(int(sys.argv[1]), True)\n"
    "port = os.fdopen(int(sys.argv[1]), 'r+b', buffering=0)\n"
    'port.write(b\'{"type": "waiting"}\\n\')\n'
    "hello = json.loads(port.readline())\n"
    'port.write(b\'{"type": "ready", "nonce": "%s"}\\n\' % hello[\'nonce\'].encode())\n'
    "os.write(int(sys.argv[2]), b'up')\n"
    "sys.exit(json.loads(port.readline()) != {'type': 'stop'})"
)

#: Ignores SIGTERM.
STUBBORN = python("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + LASTING[4])

ENDED_ON_REQUEST = {"type": "exit", "exit_code": 0, "requested": True}


async def test_a_guest_that_powers_off_is_not_signalled(tmp_path: Path) -> None:
    """The first rung is the guest's own: it may have files to write."""
    options = ["--guest-seconds", NEVER, "--term-seconds", NEVER]
    async with running_shim(tmp_path, OBEDIENT, options=options) as shim:
        await shim.vm_up()
        shim.process.terminate()
        record = await shim.ended()

        assert process_start_time(shim.vm.pid) is None

    assert record.items() >= {**ENDED_ON_REQUEST, "ready": True}.items()


async def test_a_guest_that_does_not_power_off_gets_sigterm(tmp_path: Path) -> None:
    """The guest was asked, and its time is over."""
    options = ["--guest-seconds", AT_ONCE, "--term-seconds", NEVER]
    async with running_shim(tmp_path, options=options) as shim:
        await shim.vm_up()
        await shim.become_ready()
        shim.process.terminate()
        assert await shim.hear() == {"type": "stop"}

        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


async def test_a_guest_that_is_not_ready_is_not_asked(tmp_path: Path) -> None:
    """Nobody listens in it, so QEMU gets SIGTERM at once."""
    options = ["--guest-seconds", NEVER, "--term-seconds", NEVER]
    async with running_shim(tmp_path, options=options) as shim:
        await shim.vm_up()
        await shim.greet()
        shim.process.terminate()
        record = await shim.ended()

        assert await shim.control.receive_some(1) == b""

    assert record.items() >= {**ENDED_ON_REQUEST, "ready": False}.items()


async def test_a_qemu_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """The last rung cannot be ignored, and the shim's own SIGKILL is no crash."""
    async with running_shim(tmp_path, STUBBORN, options=["--term-seconds", AT_ONCE]) as shim:
        await shim.vm_up()
        shim.process.terminate()

        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


async def test_more_sigterms_do_not_hurry_the_ladder(tmp_path: Path) -> None:
    """A guest that is writing its files keeps its time."""
    options = ["--guest-seconds", NEVER, "--term-seconds", NEVER]
    async with running_shim(tmp_path, options=options) as shim:
        await shim.vm_up()
        await shim.become_ready()
        for _ in range(3):
            shim.process.terminate()
        assert await shim.hear() == {"type": "stop"}
        shim.process.terminate()
        # The console is larger than the socket, so the loop has turned when it has gone.
        await shim.console.send_all(b"x" * (1 << 20))

        assert shim.vm.is_alive()
        os.kill(shim.vm.pid, signal.SIGTERM)
        # Nobody can tell whose SIGTERM it was, but the shim had not sent one.
        assert (await shim.ended()).items() >= {"type": "signal", "signal": "SIGTERM"}.items()


async def test_a_sigterm_that_comes_before_there_is_a_handler_is_not_lost(tmp_path: Path) -> None:
    """Signals are held while QEMU starts; here the VM itself sends it, at its first breath."""
    async with running_shim(tmp_path, ["sh", "-c", "kill -TERM $PPID; exec sleep 1000"]) as shim:
        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_a_terminals_signals_are_the_host_programs_business(
    tmp_path: Path, number: signal.Signals
) -> None:
    """^C goes to the whole foreground; the host program then stops its boxes in order."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.greet()
        shim.process.send_signal(number)
        await shim.greet()

        assert shim.vm.is_alive()
        assert shim.process.poll() is None


async def test_the_end_of_the_host_program_ends_the_vm(tmp_path: Path) -> None:
    """However it ended, the kernel closes its end of the pipe."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.greet()
        shim.hang_up()

        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


async def test_a_host_program_that_ends_before_the_nonce_ends_the_vm(tmp_path: Path) -> None:
    """It was killed between the start of the shim and the first line."""
    async with running_shim(tmp_path, first_line=b"0123") as shim:
        shim.hang_up()

        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


async def test_a_detached_vm_outlives_the_host_program(tmp_path: Path) -> None:
    """It is then ended by SIGTERM to the shim, as ever."""
    async with running_shim(tmp_path, detach=True) as shim:
        await shim.vm_up()
        shim.hang_up()
        # The second answer comes from a turn after the one that saw the end of file.
        await shim.greet()
        await shim.greet()
        assert shim.vm.is_alive()
        shim.process.terminate()

        assert (await shim.ended()).items() >= ENDED_ON_REQUEST.items()


@pytest.mark.parametrize("detach", [False, True])
async def test_the_vm_dies_with_a_shim_that_is_killed(tmp_path: Path, detach: bool) -> None:
    """Nobody would watch it any more. There is no exit file to be believed."""
    async with running_shim(tmp_path, STUBBORN, detach=detach) as shim:
        await shim.vm_up()
        await shim.greet()
        shim.process.kill()
        await shim.vm_gone()

        assert await shim.process.wait() == -signal.SIGKILL
        assert not shim.layout.exit.exists()


class Clockwork:
    """A VM and a reactor that only take notes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Take note of a timer."""
        self.log.append(f"wait {seconds:g}")
        self.timers.append((seconds, callback))

    def send_signal(self, number: int) -> None:
        """Take note of a signal."""
        self.log.append(signal.Signals(number).name)

    def ask(self, answer: bool) -> bool:
        """Take note of the guest's being asked."""
        self.log.append("ask")
        return answer


@given(asked=st.booleans(), climbs=st.integers(1, 3))
def test_the_rungs_come_in_order_and_once(asked: bool, climbs: int) -> None:
    """Ask, SIGTERM, SIGKILL, with the documented waits between them."""
    clockwork = Clockwork()
    ladder = StopLadder(
        clockwork,  # type: ignore[arg-type]
        clockwork,  # type: ignore[arg-type]
        ask_guest=lambda: clockwork.ask(asked),
        guest_seconds=3,
        term_seconds=2,
    )
    for _ in range(climbs):
        ladder.climb()
    while clockwork.timers:
        clockwork.timers.pop()[1]()

    patience = ["wait 3"] if asked else []
    assert clockwork.log == ["ask", *patience, "SIGTERM", "wait 2", "SIGKILL"]


def test_a_reaped_vm_is_never_signalled() -> None:
    """Its pid may belong to somebody else by then."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    os.close(writer)
    vm = Vm(pid, -1, reader)

    assert vm.reap() == 3
    vm.send_signal(signal.SIGKILL)
    vm.destroy()
    assert vm.reap() == 3
    assert vm.sent == set()
    os.close(reader)
