"""The pool of warm boxes, with boxes that are nothing but their names."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from fake_engine import FakeWatch

from boxlite import _pool
from boxlite._errors import HostError
from boxlite._options import BoxOptions
from boxlite._pool import REST_SECONDS, REST_SECONDS_MAX, Pool, PoolBox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Factory:
    """Starts boxes that are nothing.

    Attributes:
        log: What happened to which box.
        failures: How many of the next starts fail.
        stop_error: What taking a box down raises.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.failures = 0
        self.attempts: list[float] = []
        self.stop_error: Exception | None = None
        self._count = 0

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Any]:
        """Start one."""
        self.attempts.append(trio.current_time())
        await trio.sleep(0.1)
        if self.failures:
            self.failures -= 1
            raise HostError("no room", fix="Make some.")
        self._count += 1
        number = self._count
        self.log.append(("up", number))
        shim = SimpleNamespace(watch=FakeWatch())
        try:
            start = SimpleNamespace(number=number, box_id=str(number), shim=shim, failed=False)
            start.fail = lambda: setattr(start, "failed", True)
            yield start
        except trio.Cancelled:
            self.log.append(("killed", number))
            raise
        self.log.append(("down", number))
        if self.stop_error is not None:
            raise self.stop_error


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Factory:
    """A factory whose boxes need no warming up."""

    async def warm_up(_start: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(_pool, "_warm_up", warm_up)
    return Factory()


@asynccontextmanager
async def running(factory: Factory, size: int = 2) -> AsyncIterator[Pool]:
    """Run a pool while the block runs, and see that nothing of it is left."""
    async with trio.open_nursery() as nursery:
        pool = Pool(size=size, start_box=factory.start, options=BoxOptions())
        nursery.start_soon(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
    up = [number for what, number in factory.log if what == "up"]
    over = [number for what, number in factory.log if what != "up"]
    assert sorted(over) == up
    assert len(pool) == 0


async def take(pool: Pool) -> PoolBox:
    """Take a box out of a full pool."""
    await pool.wait_full()
    taken = pool.take(BoxOptions())
    assert taken is not None
    return taken


async def test_a_box_that_was_taken_is_replaced_and_taken_down_in_order(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """The taker waits until it is gone; nobody gets a box twice."""
    async with running(factory) as pool:
        await pool.wait_full()
        taken = pool.take(BoxOptions(env={"A": "b"}, stop_grace=1))
        assert taken is not None
        async with taken.use() as start:
            await pool.wait_full()
            assert factory.log == [("up", 1), ("up", 2), ("up", 3)]
            other = pool.take(BoxOptions())
            assert other is not None
            async with other.use() as second:
                assert start is not second
        assert ("down", 1) in factory.log
        assert ("down", 2) in factory.log


async def test_only_a_box_of_the_same_machine_will_do(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """Memory cannot be changed afterwards; an empty pool gives nothing."""
    async with running(factory, size=1) as pool:
        assert pool.take(BoxOptions()) is None
        await pool.wait_full()
        assert pool.take(BoxOptions(memory_mib=512)) is None
        taken = await take(pool)
        assert pool.take(BoxOptions()) is None
        async with taken.use():
            pass


async def test_a_failing_block_kills_the_box_before_the_error_comes_out(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """As it does with a box that was started for it."""
    async with running(factory, size=1) as pool:
        taken = await take(pool)
        with pytest.raises(KeyError):
            async with taken.use():
                raise KeyError
        assert ("killed", 1) in factory.log


async def test_a_cancelled_block_kills_the_box_before_the_scope_ends(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """Nothing is left behind for the taker's own nursery."""
    async with running(factory, size=1) as pool:
        taken = await take(pool)
        with trio.move_on_after(1) as scope:
            async with taken.use():
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert ("killed", 1) in factory.log


async def test_a_box_that_dies_unused_is_replaced(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """And is not given away in the moment before that is noticed."""
    async with running(factory, size=1) as pool:
        await pool.wait_full()
        dead = pool._ready[0]._start
        dead.shim.watch.ended.set()  # type: ignore[attr-defined]
        assert pool.take(BoxOptions()) is None
        taken = await take(pool)
        async with taken.use() as start:
            assert start is not dead
        assert dead.failed  # type: ignore[attr-defined]


async def test_failing_starts_are_tried_again_after_growing_rests(
    autojump_clock: trio.testing.MockClock, factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged; a success begins the rests anew."""
    factory.failures = 8
    async with running(factory, size=1) as pool:
        await pool.wait_full()
        rests = [
            round(b - a - 0.1, 3)
            for a, b in zip(factory.attempts, factory.attempts[1:], strict=False)
        ]
        assert rests == [REST_SECONDS * 2**n for n in range(6)] + [REST_SECONDS_MAX] * 2
        assert caplog.text.count("no room") == 8
        factory.failures = 1
        taken = await take(pool)
        async with taken.use():
            await pool.wait_full()
        assert round(factory.attempts[-1] - factory.attempts[-2] - 0.1, 3) == REST_SECONDS


async def test_an_error_of_the_taking_down_is_the_takers(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """The pool goes on."""
    async with running(factory, size=1) as pool:
        taken = await take(pool)
        factory.stop_error = HostError("stuck", fix="Look.")
        with pytest.raises(HostError, match="stuck"):
            async with taken.use():
                await pool.wait_full()
        factory.stop_error = None


async def test_a_pool_that_ends_kills_the_box_of_a_taker(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """It does not outlive its runtime, whoever has it."""
    async with trio.open_nursery() as nursery:
        pool = Pool(size=1, start_box=factory.start, options=BoxOptions())
        nursery.start_soon(pool.run)
        taken = await take(pool)
        async with taken.use():
            nursery.cancel_scope.cancel()
    assert ("killed", 1) in factory.log


async def test_a_pool_of_none_starts_none(
    autojump_clock: trio.testing.MockClock, factory: Factory
) -> None:
    """It is there and costs a parked task."""
    async with running(factory, size=0) as pool:
        await pool.wait_full()
        await trio.sleep(100)
        assert pool.take(BoxOptions()) is None
    assert factory.attempts == []
