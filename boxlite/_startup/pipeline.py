"""Running a table of stages: in order, or together, timed and told of.

A start is data: a tuple of :class:`Stage` and :class:`Together`. What a stage
makes it registers for undoing with its subject, so nothing here knows what a
box is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import attrs
import trio

from boxlite._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class StageEvent:
    """A stage of a start began, ended or failed.

    Args:
        box_id: Which box.
        stage: The name of the stage.
        what: ``"began"``, ``"done"`` or ``"failed"``; a cancelled stage has failed.
        seconds: How long it took; 0 when it began.
    """

    box_id: str
    stage: str
    what: Literal["began", "done", "failed"]
    seconds: float = 0.0


@attrs.frozen
class Stage(Generic[T]):
    """One step of a start."""

    name: str
    run: Callable[[T], Awaitable[None]]


@attrs.frozen
class Together(Generic[T]):
    """Steps that do not depend on one another and run at the same time."""

    stages: tuple[Stage[T], ...]


@attrs.define(kw_only=True)
class StageLog:
    """What a start has done so far.

    Args:
        box_id: Which box is started.
        listener: Called with every event, synchronously, in the starting task;
            an exception from it fails the start.
        timings: Finished stages and their seconds, in the order they finished.
        under_way: Stages that have begun and not ended, and when they began.
    """

    box_id: str
    listener: Callable[[StageEvent], object] | None = None
    timings: list[tuple[str, float]] = attrs.field(factory=list)
    under_way: dict[str, float] = attrs.field(factory=dict)

    def so_far(self) -> tuple[tuple[str, float], ...]:
        """Return the stages that are under way, and the seconds since each began."""
        now = trio.current_time()
        return tuple((name, now - began) for name, began in self.under_way.items())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record a stage around the block."""
        began = trio.current_time()
        self._tell(StageEvent(box_id=self.box_id, stage=name, what="began"))
        self.under_way[name] = began
        what: Literal["done", "failed"] = "failed"
        try:
            yield
            what = "done"
        finally:
            del self.under_way[name]
            seconds = trio.current_time() - began
            if what == "done":
                self.timings.append((name, seconds))
            self._tell(StageEvent(box_id=self.box_id, stage=name, what=what, seconds=seconds))

    def _tell(self, event: StageEvent) -> None:
        if self.listener is not None:
            self.listener(event)


async def run_stages(table: Sequence[Stage[T] | Together[T]], subject: T, log: StageLog) -> None:
    """Run a table of stages on their subject, recording each in the log.

    The first failure ends the rest of its group and the start; it is raised as
    it is, not in a group. Undoing is the caller's.
    """

    async def run(stage: Stage[T]) -> None:
        with log.stage(stage.name):
            await stage.run(subject)

    for entry in table:
        if isinstance(entry, Stage):
            await run(entry)
        else:
            async with open_nursery_unwrapped() as nursery:
                for stage in entry.stages:
                    nursery.start_soon(run, stage, name=f"stage {stage.name}")
