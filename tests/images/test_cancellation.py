"""Pulls that are cancelled: at every event, at any checkpoint, one of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import image_builder
import pytest
import trio
from image_homes import assert_holds, images_of, nothing_left, tree
from image_trees import differences

import boxlite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from image_layout import Layout

    from boxlite._layout import HomeLayout

    Event = boxlite.PullProgress | boxlite.ConvertProgress

#: Nobody waits for what is on this machine for longer than this.
PATIENCE_SECONDS: Final = 120


async def test_a_pull_that_is_cancelled_at_any_event_leaves_nothing_running(
    home: HomeLayout, busybox: Layout, busybox_reference: str, tmp_path: Path
) -> None:
    """And the next one goes on from there."""
    images, events = images_of(home), list[boxlite.PullProgress | boxlite.ConvertProgress]()
    whole = await images.pull(busybox_reference, on_progress=events.append)
    there = tree(whole, tmp_path)
    await images.remove(busybox_reference)
    for stop in range(1, len(events) + 1):
        told = 0
        with nothing_left(home), trio.CancelScope() as scope:

            def tell(_: object, stop: int = stop, scope: trio.CancelScope = scope) -> None:
                nonlocal told
                told += 1
                if told == stop:
                    scope.cancel()

            await images.pull(busybox_reference, on_progress=tell)
        # What comes after the last event may be done by then.
        assert scope.cancelled_caught or told < stop or await images.list() != []
        if stop % 5 == 0:
            with trio.fail_after(PATIENCE_SECONDS):
                again = await images.pull(busybox_reference)
            assert differences(tree(again, tmp_path), there) == []
            await images.prune()
            assert_holds(home, busybox)
            await images.remove(busybox_reference)
            assert_holds(home)


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope when a task has been scheduled so many times."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step, of whatever task."""
        self._left -= 1
        if not self._left:
            self._scope.cancel()


@pytest.mark.parametrize("way", ["pull", "load"])
async def test_what_is_cancelled_at_any_checkpoint_leaves_nothing_running(
    way: str, home: HomeLayout, busybox: Layout, busybox_reference: str, tmp_path: Path
) -> None:
    """Between two events, too: while something is opened, closed, published or named."""
    images, steps, cancelled = images_of(home), 1, 0
    archive = image_builder.oci_archive(busybox, tmp_path / "image.tar")
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            with nothing_left(home):
                with trio.CancelScope() as scope:
                    instrument = CancelAfter(scope, steps)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        if way == "pull":
                            await images.pull(busybox_reference)
                        else:
                            await images.load(archive, name="loaded")
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
                if not scope.cancelled_caught:
                    break
            cancelled += 1
            await images.prune()
            steps = steps + 1 + steps // 20
    assert cancelled > 10
    assert_holds(home, busybox)


async def test_cancelling_one_of_two_pulls_does_not_harm_the_other(
    home: HomeLayout, busybox: Layout, busybox_reference: str
) -> None:
    """Neither the one that downloads, nor the one that makes the root."""
    images = images_of(home)
    for state in ("waiting", "downloading", "unpack", "pack"):
        with trio.fail_after(PATIENCE_SECONDS), nothing_left(home):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                def tell(event: Event, state: str = state, scope: trio.CancelScope = scope) -> None:
                    now = event.state if isinstance(event, boxlite.PullProgress) else event.step
                    if now == state:
                        scope.cancel()

                async def pull(
                    scope: trio.CancelScope = scope, tell: Callable[[Event], None] = tell
                ) -> None:
                    with scope:
                        await images.pull(busybox_reference, on_progress=tell)

                nursery.start_soon(pull)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(images.pull, busybox_reference)
        assert_holds(home, busybox)
        await images.remove(busybox_reference)
