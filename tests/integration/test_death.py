"""Killing what runs a box: one error, the right story, no hang, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from conftest import READY_TIMEOUT, forget, kill_when_there

import boxlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from boxlite._layout import BoxLayout

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]

SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]


@asynccontextmanager
async def killing(
    runtime: boxlite.Runtime, pick: Callable[[BoxLayout], Path], number: signal.Signals
) -> AsyncIterator[dict[str, Any]]:
    """Give options for open_box that have a process killed while the guest boots."""
    async with trio.open_nursery() as nursery:

        def on_stage(event: boxlite.StageEvent) -> None:
            if (event.stage, event.what) == ("guest_ready", "began"):
                pid_file = pick(runtime.home.box(event.box_id))
                nursery.start_soon(kill_when_there, pid_file, number)

        yield {"on_stage": on_stage, "ready_timeout": READY_TIMEOUT}


@pytest.mark.parametrize("number", SIGNALS)
def test_qemu_killed_during_the_start(in_runtime: InRuntime, number: signal.Signals) -> None:
    """The race is lost to the shim's exit, and the report names the signal."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with killing(runtime, lambda layout: layout.vm_pid, number) as options:
            with pytest.raises(boxlite.BoxStartError) as caught:
                async with runtime.open_box(**options):
                    pytest.fail("the box started")
        report = caught.value.report
        assert report.kind is boxlite.CrashKind.SIGNAL
        assert report.headline.endswith(f"the VM was ended by {number.name}")
        assert report.exit_code == 128 + number
        assert "qemu-system-x86_64" in dict(report.evidence)["command line"]
        assert "guest_ready" in dict(report.evidence)["stage"]
        forget(caught.value)

    in_runtime(scenario)


def test_the_shim_killed_during_the_start(in_runtime: InRuntime) -> None:
    """Its VM dies with it, and the report says that the shim is the one that went."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with killing(runtime, lambda layout: layout.shim_pid, signal.SIGKILL) as options:
            with pytest.raises(boxlite.BoxStartError) as caught:
                async with runtime.open_box(**options):
                    pytest.fail("the box started")
        assert caught.value.report.kind is boxlite.CrashKind.SHIM_LOST
        assert "SIGKILL" in caught.value.report.headline
        forget(caught.value)

    in_runtime(scenario)


@pytest.mark.parametrize("number", SIGNALS)
def test_qemu_killed_during_a_command(in_runtime: InRuntime, number: signal.Signals) -> None:
    """The block is cancelled, and one error comes out of it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                layout = runtime.home.box(box.id)
                async with box.exec(["sh", "-c", "echo up; sleep 1000"]) as execution:
                    assert await execution.stdout.receive_some() == b"up\n"
                    await kill_when_there(layout.vm_pid, number)
                    await execution.wait()
                    pytest.fail("the command ended")
        report = caught.value.report
        assert report.kind is boxlite.CrashKind.SIGNAL
        assert report.headline.endswith(
            f"died while it was running: the VM was ended by {number.name}"
        )
        forget(caught.value)

    in_runtime(scenario)


def test_the_shim_killed_during_a_command(in_runtime: InRuntime) -> None:
    """The same, and the story is the shim's."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                async with trio.open_nursery() as nursery:
                    # Several commands in a nursery of the user's own: still one error.
                    for _ in range(3):
                        nursery.start_soon(box.run, ["sleep", "1000"])
                    await box.run(["true"])
                    os.kill(box.shim_pid, signal.SIGKILL)
        assert caught.value.report.kind is boxlite.CrashKind.SHIM_LOST
        forget(caught.value)

    in_runtime(scenario)


def test_a_guest_that_crashes_its_kernel_is_told_as_that(in_runtime: InRuntime) -> None:
    """QEMU ends in good order; the console has the line that matters."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(boxlite.BoxCrashedError, match="sysrq triggered crash") as caught:
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                await box.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"])
        assert caught.value.report.kind is boxlite.CrashKind.KERNEL_PANIC
        forget(caught.value)

    in_runtime(scenario)


def test_a_call_from_outside_the_block_gets_the_story_too(in_runtime: InRuntime) -> None:
    """It is not cancelled with the block, so it raises the error itself."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        errors: list[boxlite.BoxliteError] = []

        async def outside(box: boxlite.Box) -> None:
            try:
                await box.run(["sleep", "1000"])
            except boxlite.BoxliteError as exc:
                errors.append(exc)

        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with trio.open_nursery() as nursery:
                try:
                    async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                        nursery.start_soon(outside, box)
                        await box.run(["true"])
                        os.kill(box.shim_pid, signal.SIGKILL)
                        await trio.sleep_forever()
                except boxlite.BoxCrashedError as exc:
                    crashed = exc
            raise crashed
        assert [type(error) for error in errors] == [boxlite.BoxCrashedError]
        forget(caught.value)

    in_runtime(scenario)


def test_the_users_own_exception_wins_over_the_boxes_orderly_end(in_runtime: InRuntime) -> None:
    """As it is, not in a group, and the box is gone."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(KeyError, match="mine"):
            async with runtime.open_box(ready_timeout=READY_TIMEOUT):
                raise KeyError("mine")

    in_runtime(scenario)


def test_the_users_own_exception_wins_over_a_crash_and_notes_it(in_runtime: InRuntime) -> None:
    """What explains the crash is kept all the same."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(KeyError, match="mine") as caught:
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                directory = runtime.home.box(box.id).root
                os.kill(box.shim_pid, signal.SIGKILL)
                try:
                    await trio.sleep_forever()
                finally:
                    raise KeyError("mine")
        assert any("the box died too" in note for note in caught.value.__notes__)
        assert (directory / "console.log").exists()
        shutil.rmtree(directory)

    in_runtime(scenario)


def test_two_boxes_are_independent(in_runtime: InRuntime) -> None:
    """Killing one leaves the command in the other running."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with trio.open_nursery() as nursery:
            first_up, killed = trio.Event(), trio.Event()

            async def survivor() -> None:
                async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                    async with box.exec(["cat"]) as execution:
                        await execution.stdin.send_all(b"before")
                        assert await execution.stdout.receive_some() == b"before"
                        first_up.set()
                        await killed.wait()
                        await execution.stdin.send_all(b"after")
                        assert await execution.stdout.receive_some() == b"after"

            async def victim() -> None:
                with pytest.raises(boxlite.BoxCrashedError) as caught:
                    async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                        await first_up.wait()
                        vm_pid = runtime.home.box(box.id).vm_pid
                        await kill_when_there(vm_pid, signal.SIGKILL)
                        await trio.sleep_forever()
                forget(caught.value)
                killed.set()

            nursery.start_soon(survivor)
            nursery.start_soon(victim)

    in_runtime(scenario)


@pytest.mark.parametrize("frozen", ["vm_pid", "shim_pid"])
def test_a_vm_that_does_not_stop_is_killed(in_runtime: InRuntime, frozen: str) -> None:
    """Whether QEMU hangs or its shim does, leaving the block ends both, in bounded time."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with trio.fail_after(READY_TIMEOUT):
            async with runtime.open_box(ready_timeout=READY_TIMEOUT, stop_grace=0.1) as box:
                pid_file = getattr(runtime.home.box(box.id), frozen)
                await kill_when_there(pid_file, signal.SIGSTOP)

    in_runtime(scenario)
