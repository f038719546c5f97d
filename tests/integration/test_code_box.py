"""Python code in a real box, piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from conftest import READY_TIMEOUT, Stage, second_home

import boxlite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    InBox = Callable[[Callable[[boxlite.Box], Awaitable[Any]]], Any]


def test_code_runs_with_memory_of_what_was_before(in_box: InBox) -> None:
    """Value, output and exception; tasks take turns."""

    async def scenario(box: boxlite.Box) -> None:
        async with boxlite.CodeBox(box=box) as code:
            assert code.box is box
            assert await code.run("import platform; x = 6; print('hi')") == boxlite.CodeResult(
                stdout="hi\n"
            )
            assert (await code.run("x * 7")).value == "42"
            release = (await box.info()).kernel_release
            assert (await code.run("platform.release()")).value == repr(release)
            failed = await code.run("1 / 0")
            assert failed.error is not None
            assert failed.error.type == "ZeroDivisionError"
            results: set[str | None] = set()

            async def one(number: int) -> None:
                results.add((await code.run(f"x += 1; {number}")).value)

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(one, number)
            assert results == {"0", "1", "2", "3", "4"}
            assert (await code.run("x")).value == "11"
            assert (await code.run("'x' in globals()", fresh=True)).value == "False"
        with pytest.raises(boxlite.StateError):
            await code.run("1")
        assert (await box.run(["true"])).exit_code == 0

    in_box(scenario)


def test_code_that_takes_too_long_is_interrupted_or_killed(in_box: InBox) -> None:
    """The first keeps its state and what it printed, the second loses both."""

    async def scenario(box: boxlite.Box) -> None:
        async with boxlite.CodeBox(box=box) as code:
            await code.run("x = 1")
            with pytest.raises(boxlite.CodeTimeoutError, match="interrupted") as caught:
                await code.run("print('up'); import time; time.sleep(1000)", timeout=1)
            assert caught.value.result is not None
            assert caught.value.result.stdout == "up\n"
            assert caught.value.result.error is not None
            assert caught.value.result.error.type == "KeyboardInterrupt"
            assert (await code.run("x")).value == "1"

            stubborn = (
                "import signal, time\n"
                "while True:\n"
                "    try:\n"
                "        while True: time.sleep(0.01)\n"
                "    except KeyboardInterrupt: pass\n"
            )
            with pytest.raises(boxlite.CodeTimeoutError, match="killed") as caught:
                await code.run(stubborn, timeout=1)
            assert caught.value.result is None
            assert (await code.run("2")).value == "2"

    in_box(scenario)


def test_cancelling_kills_the_code_and_the_box_goes_on(in_box: InBox) -> None:
    """The next piece has an interpreter of its own."""

    async def scenario(box: boxlite.Box) -> None:
        async with boxlite.CodeBox(box=box) as code:
            await code.run("x = 1")
            with trio.move_on_after(0.5):
                await code.run("import time; time.sleep(1000)")
            assert (await code.run("'x' in globals()")).value == "False"

    in_box(scenario)


def test_an_interpreter_that_is_killed_or_lies_is_told_and_replaced(in_box: InBox) -> None:
    """Code in the box can do both."""

    async def scenario(box: boxlite.Box) -> None:
        async with boxlite.CodeBox(box=box) as code:
            with pytest.raises(boxlite.GuestProtocolError, match="ended"):
                await code.run("import os; os.kill(os.getpid(), 9)")
            # The descriptor of the answers is one of the first few.
            lie = (
                "import os\n"
                "for fd in range(3, 9):\n"
                "    try: os.write(fd, b'\\xff' * 8)\n"
                "    except OSError: pass\n"
            )
            with pytest.raises(boxlite.GuestProtocolError):
                await code.run(lie)
            assert (await code.run("3")).value == "3"

    in_box(scenario)


def test_bad_input_is_refused(in_box: InBox) -> None:
    """By name."""

    async def scenario(box: boxlite.Box) -> None:
        async with boxlite.CodeBox(box=box) as code:
            with pytest.raises(boxlite.InvalidOptionError, match="timeout"):
                await code.run("1", timeout=-1)
            with pytest.raises(boxlite.InvalidOptionError, match="max_output"):
                await code.run("1", max_output=-1)
            with pytest.raises(boxlite.InvalidOptionError, match="code"):
                await code.run(b"1")  # type: ignore[arg-type]
        with pytest.raises(boxlite.InvalidOptionError, match="box"):
            boxlite.CodeBox(box=box, memory_mib=512)

    in_box(scenario)


def test_boxes_of_their_own(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runtime of their own, and with one that is given; nothing is left of either."""
    home = second_home(tmp_path, stage)
    monkeypatch.setenv("BOXLITE_HOME", str(home))

    async def alone() -> None:
        async with boxlite.SimpleBox(ready_timeout=READY_TIMEOUT) as box:
            assert (await box.run(["echo", "simple"])).stdout == b"simple\n"
        async with boxlite.open_runtime() as runtime:
            async with boxlite.CodeBox(runtime=runtime, ready_timeout=READY_TIMEOUT) as code:
                assert (await code.run("6 * 7")).value == "42"
            with pytest.raises(KeyError):
                async with boxlite.CodeBox(runtime=runtime, ready_timeout=READY_TIMEOUT):
                    raise KeyError
        assert list((home / "boxes").iterdir()) == []

    stage.play(alone)
