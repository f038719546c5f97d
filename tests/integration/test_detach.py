"""Detached boxes: they outlive a block and a program, and tell what became of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from conftest import READY_TIMEOUT, kill_when_there, second_home

import boxlite
from boxlite import BoxState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import Stage

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]


def test_a_detached_box_is_found_again(in_runtime: InRuntime) -> None:
    """With what was in it, and its options; stopping it leaves nothing."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            detach=True, env={"TOKEN": "tiger-42"}, ready_timeout=READY_TIMEOUT
        ) as box:
            await box.run(["sh", "-c", "echo $TOKEN > /tmp/note"])
        assert box.state is BoxState.RUNNING
        with pytest.raises(boxlite.StateError):
            await box.run(["true"])

        for _ in range(2):
            async with runtime.attach(box.id) as again:
                assert again.id == box.id
                assert again.options.env == (("TOKEN", "tiger-42"),)
                done = await again.run(["sh", "-c", "cat /tmp/note; echo $TOKEN"])
                assert done.stdout == b"tiger-42\ntiger-42\n"
                with pytest.raises(boxlite.StateError, match="open in it"):
                    async with runtime.attach(box.id):
                        pytest.fail("attached twice")
        with pytest.raises(KeyError):
            async with runtime.attach(box.id):
                raise KeyError
        with trio.move_on_after(0.01):
            async with runtime.attach(box.id):
                await trio.sleep_forever()

        async with runtime.attach(box.id) as again:
            await again.stop()
            await again.stop()
            assert "stopping" in repr(again)
            with pytest.raises(boxlite.StateError):
                await again.run(["true"])
        assert again.state is BoxState.STOPPED
        with pytest.raises(boxlite.InvalidOptionError, match="the id of a box in"):
            async with runtime.attach(box.id):
                pytest.fail("it is gone")

    in_runtime(scenario)


def test_a_box_that_is_not_detached_is_not_found(in_runtime: InRuntime) -> None:
    """Nor is anything by a name that is no id, however it is meant."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
            with pytest.raises(boxlite.StateError, match="open in it"):
                async with runtime.attach(box.id):
                    pytest.fail("attached to a box of one's own")
        for name in ("../../etc", "", "short", "UPPERCASE000", 7):
            with pytest.raises(boxlite.InvalidOptionError, match="box_id"):
                async with runtime.attach(name):  # type: ignore[arg-type]
                    pytest.fail("attached to nonsense")

    in_runtime(scenario)


@pytest.mark.parametrize("pid_file", ["vm_pid", "shim_pid"])
def test_a_detached_box_that_died_says_why(in_runtime: InRuntime, pid_file: str) -> None:
    """From its files: nobody was there."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(detach=True, ready_timeout=READY_TIMEOUT) as box:
            layout = runtime.home.box(box.id)
            shim = box.shim_pid
        await kill_when_there(getattr(layout, pid_file), signal.SIGKILL)
        os.waitid(os.P_PID, shim, os.WEXITED | os.WNOWAIT)

        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.attach(box.id):
                pytest.fail("attached to the dead")
        report = caught.value.report
        story = "the VM was ended by SIGKILL" if pid_file == "vm_pid" else "nobody knows how"
        assert f"Box {box.id} cannot be attached to: " in report.headline
        assert story in report.headline
        shutil.rmtree(layout.root)
        # Shims that were left running are reaped when the next one is started.
        async with runtime.open_box(ready_timeout=READY_TIMEOUT):
            pass

    in_runtime(scenario)


def test_a_box_that_dies_while_attached_is_a_crash(in_runtime: InRuntime) -> None:
    """As for any box; the command line in the report is the living VM's."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(detach=True, ready_timeout=READY_TIMEOUT) as box:
            pass
        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.attach(box.id) as box:
                await kill_when_there(runtime.home.box(box.id).vm_pid, signal.SIGKILL)
                await trio.sleep_forever()
        assert box.state is BoxState.FAILED
        report = caught.value.report
        assert report.kind is boxlite.CrashKind.SIGNAL
        assert f"boxlite-{box.id}" in dict(report.evidence)["command line"]
        shutil.rmtree(runtime.home.box(box.id).root)
        async with runtime.open_box(ready_timeout=READY_TIMEOUT):
            pass

    in_runtime(scenario)


_LEAVER = """
import os, sys, trio, boxlite

async def main():
    async with boxlite.open_runtime(home=sys.argv[1], templates=sys.argv[3] == "True") as runtime:
        async with runtime.open_box(detach=True, ready_timeout=float(sys.argv[2])) as box:
            await box.run(["sh", "-c", "echo $$ > /tmp/pid"])
            async with box.exec(["yes"]) as execution:
                await execution.stdout.receive_some()
                print(box.id, flush=True)
                await trio.sleep_forever()

trio.run(main)
"""


def test_a_detached_box_outlives_a_program_that_is_killed(stage: Stage, tmp_path: Path) -> None:
    """In the middle of output; another program then finds its bytes in order."""
    home = second_home(tmp_path, stage)
    arguments = [str(home), str(READY_TIMEOUT), str(stage.runtime.options.templates)]
    with subprocess.Popen(
        [sys.executable, "-c", _LEAVER, *arguments], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        box_id = child.stdout.readline().decode().strip()
        child.kill()
        child.wait()

    async def attach() -> None:
        async with boxlite.open_runtime(home=home) as runtime:
            for _ in range(3):
                async with runtime.attach(box_id) as box:
                    done = await box.run(["sh", "-c", "cat /tmp/pid; yes | head -c 200000 | wc -c"])
                    assert done.stdout.splitlines()[1] == b"200000"
            async with runtime.attach(box_id) as box:
                await box.stop()
            assert list(runtime.home.boxes.iterdir()) == []

    stage.play(attach)
