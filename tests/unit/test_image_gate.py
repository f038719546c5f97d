"""The gate of the image store: adders together, a remover alone, everybody gets a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from boxlite._images.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from trio.testing import MockClock

#: Longer than all tasks of a test take together.
LONG = 10_000


@attrs.frozen(kw_only=True)
class Visit:
    """A task that comes to the gate, and what becomes of it."""

    removes: bool
    comes: int
    stays: int
    patience: int


@attrs.define
class Watch:
    """Who is inside, and who was."""

    adding: int = 0
    removing: int = 0
    done: int = 0

    async def visit(self, gate: Gate, visit: Visit) -> None:
        """Go in and stay, unless patience ends before."""
        await trio.sleep(visit.comes)
        with trio.move_on_after(visit.patience):
            if visit.removes:
                async with gate.removing():
                    assert (self.adding, self.removing) == (0, 0)
                    self.removing += 1
                    try:
                        await trio.sleep(visit.stays)
                    finally:
                        self.removing -= 1
            else:
                async with gate.adding():
                    assert self.removing == 0
                    self.adding += 1
                    try:
                        await trio.sleep(visit.stays)
                    finally:
                        self.adding -= 1
            self.done += 1


visits = st.builds(
    Visit,
    removes=st.booleans(),
    comes=st.integers(0, 20),
    stays=st.integers(0, 10),
    patience=st.one_of(st.integers(0, 15), st.just(LONG)),
)


@given(st.lists(visits, max_size=12))
def test_any_order_of_visits_keeps_them_apart_and_lets_all_pass(coming: list[Visit]) -> None:
    """Also when some of them are cancelled, while they wait or inside: nobody is stuck."""

    async def run() -> None:
        gate, watch = Gate(), Watch()
        with trio.fail_after(LONG - 1):
            async with trio.open_nursery() as nursery:
                for visit in coming:
                    nursery.start_soon(watch.visit, gate, visit)
            # It is as good as new: both ways in are free.
            async with gate.removing():
                pass
            async with gate.adding(), gate.adding():
                pass
        assert watch.done >= sum(visit.patience == LONG for visit in coming)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_adders_are_inside_together(autojump_clock: MockClock) -> None:
    """Ten pulls take as long as one."""
    gate = Gate()

    async def add() -> None:
        async with gate.adding():
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(add)
    assert trio.current_time() == pytest.approx(1)


async def test_a_remover_is_not_starved_by_adders(autojump_clock: MockClock) -> None:
    """Pulls that overlap without end do not keep a prune from its turn."""
    gate = Gate()
    entered = []

    async def add(number: int) -> None:
        await trio.sleep(number)
        async with gate.adding():
            entered.append(number)
            await trio.sleep(1.5)

    async def remove() -> None:
        await trio.sleep(0.5)
        async with gate.removing():
            entered.append(-1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove)
        for number in range(4):
            nursery.start_soon(add, number)
    assert entered == [0, -1, 1, 2, 3]


def _ways() -> list[Callable[[Gate], AbstractAsyncContextManager[None]]]:
    return [Gate.adding, Gate.removing]


@pytest.mark.parametrize("inside", _ways())
@pytest.mark.parametrize("waiting", _ways())
async def test_whoever_is_cancelled_leaves_the_gate_usable(
    inside: Callable[[Gate], AbstractAsyncContextManager[None]],
    waiting: Callable[[Gate], AbstractAsyncContextManager[None]],
) -> None:
    """Before the gate, behind it, and in the tick in which it opens."""
    for steps in range(6):
        gate, leave = Gate(), trio.Event()
        scope = trio.CancelScope()

        async def stay(gate: Gate = gate, leave: trio.Event = leave) -> None:
            async with inside(gate):
                await leave.wait()

        async def wait(gate: Gate = gate, scope: trio.CancelScope = scope) -> None:
            with scope:
                async with waiting(gate):
                    await trio.sleep_forever()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stay)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                leave.set()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            async with gate.removing():
                pass
            async with gate.adding():
                pass


@pytest.mark.parametrize("way", _ways())
async def test_an_error_inside_comes_out_and_opens_the_gate(
    way: Callable[[Gate], AbstractAsyncContextManager[None]],
) -> None:
    """A pull that fails is the rule rather than the exception."""
    gate = Gate()
    with pytest.raises(KeyError):
        async with way(gate):
            raise KeyError
    with trio.fail_after(5):
        async with gate.removing():
            pass
