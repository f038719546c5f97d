"""Stages run in order or together, are timed, and fail as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from boxlite._startup.pipeline import Stage, StageLog, Together, run_stages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite import StageEvent


def sleeping(seconds: float) -> Callable[[list[str]], Awaitable[None]]:
    """Return a stage that takes a time."""

    async def run(subject: list[str]) -> None:
        await trio.sleep(seconds)
        subject.append(f"slept {seconds}")

    return run


async def failing(subject: list[str]) -> None:
    """Fail after a second."""
    await trio.sleep(1)
    raise KeyError("stage")


async def test_stages_run_in_order_and_groups_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A group takes as long as its slowest member; every stage is timed."""
    log = StageLog(box_id="b")
    subject: list[str] = []
    table = (
        Stage("first", sleeping(1)),
        Together((Stage("slow", sleeping(5)), Stage("quick", sleeping(2)))),
        Stage("last", sleeping(3)),
    )

    await run_stages(table, subject, log)

    assert subject == ["slept 1", "slept 2", "slept 5", "slept 3"]
    assert [name for name, _ in log.timings] == ["first", "quick", "slow", "last"]
    assert [seconds for _, seconds in log.timings] == pytest.approx([1, 2, 5, 3])
    assert trio.current_time() == pytest.approx(9)
    assert log.so_far() == ()


async def test_a_failure_ends_the_start_and_comes_out_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The rest of its group is cancelled, nothing after it runs, and it is not in a group."""
    events: list[StageEvent] = []
    log = StageLog(box_id="b", listener=events.append)
    subject: list[str] = []
    table = (
        Together((Stage("fails", failing), Stage("long", sleeping(100)))),
        Stage("never", sleeping(1)),
    )

    with pytest.raises(KeyError, match="stage"):
        await run_stages(table, subject, log)

    assert subject == []
    assert log.timings == []
    told = {(event.stage, event.what) for event in events}
    assert told == {("fails", "began"), ("long", "began"), ("fails", "failed"), ("long", "failed")}
    assert trio.current_time() == pytest.approx(1)


async def test_cancelling_a_start_is_told_as_a_failed_stage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The stage under way is known while it runs, and told when it is cut off."""
    events: list[StageEvent] = []
    log = StageLog(box_id="b", listener=events.append)

    with trio.move_on_after(2) as scope:
        await run_stages((Stage("one", sleeping(1)), Stage("two", sleeping(9))), [], log)

    assert scope.cancelled_caught
    assert [(event.stage, event.what) for event in events] == [
        ("one", "began"),
        ("one", "done"),
        ("two", "began"),
        ("two", "failed"),
    ]
    assert events[-1].seconds == pytest.approx(1)
