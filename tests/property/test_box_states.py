"""The states of a box: the pure machine, and the real runtime over an engine of tasks."""

from __future__ import annotations

import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from box_machine import BoxMachine, World
from fake_engine import FakeEngine, fake_engine
from hypothesis import given, settings, strategies as st

import boxlite
from boxlite import BoxState, StateError
from boxlite._state import Lifecycle, may_follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@given(st.lists(st.sampled_from(BoxState), max_size=20))
def test_a_box_is_where_the_diagram_let_it(wishes: list[BoxState]) -> None:
    """A refused step changes nothing and names both states."""
    life = Lifecycle()
    for wish in wishes:
        before = life.state
        if may_follow(before, wish):
            life.advance(wish, to="test")
            assert life.state is wish
        else:
            with pytest.raises(StateError, match=before.value) as caught:
                life.advance(wish, to="test")
            assert caught.value.actual == before.value
            required = {state.value for state in BoxState if may_follow(state, wish)}
            assert set(caught.value.required.split(" or ")) - {"never"} == required
            assert life.state is before


@given(st.sampled_from(BoxState))
def test_every_state_can_be_left_and_reached(state: BoxState) -> None:
    """No box is stuck for ever, and no state is only words."""
    assert any(may_follow(state, other) for other in BoxState)
    reached = any(may_follow(other, state) for other in BoxState)
    assert reached or state is BoxState.CONFIGURED


def test_the_first_word_about_a_failure_counts() -> None:
    """Failing is not an error of whoever notices it second, or when nothing has begun."""
    life = Lifecycle()
    life.fail()
    assert life.state is BoxState.CONFIGURED
    life.advance(BoxState.STARTING, to="test")
    life.fail()
    life.fail()
    assert life.failed
    assert "failed" in repr(life)


class FakeWorld(World):
    """The real runtime, and engines that are tasks."""

    engine: FakeEngine

    @asynccontextmanager
    async def open_runtime(self) -> AsyncIterator[boxlite.Runtime]:
        """Return a runtime in a home of its own."""
        home = Path(tempfile.mkdtemp())
        try:
            with pytest.MonkeyPatch.context() as patch:
                async with (
                    fake_engine(patch) as self.engine,
                    boxlite.open_runtime(home=home, templates=False) as runtime,
                ):
                    yield runtime
        finally:
            shutil.rmtree(home)

    async def kill(self, box_id: str, what: str) -> None:
        """End the shim, with the exit file that a killed VM has, or with none."""
        number = signal.SIGKILL
        killed = {"type": "signal", "exit_code": 128 + number, "signal": number.name}
        self.engine.shims[box_id].end(killed if what == "vm" else None, exit_code=-number)

    def living(self) -> int:
        """Return how many there are."""
        return len(self.engine.shims)


class FakeBoxMachine(BoxMachine):
    """The rules over tasks."""

    def make_world(self) -> World:
        """Return a new world."""
        return FakeWorld()


TestBoxes = FakeBoxMachine.TestCase
TestBoxes.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
