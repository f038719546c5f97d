"""Which exception leaves an unwrapped nursery."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio
import trio.testing

from boxlite._scopes import open_nursery_unwrapped


async def fail(error: BaseException) -> NoReturn:
    """Raise at the next checkpoint."""
    await trio.lowlevel.checkpoint()
    raise error


async def fail_at_the_end(error: BaseException) -> None:
    """Raise when the nursery is cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def test_a_tasks_error_comes_out_as_itself() -> None:
    """The block is cancelled by it, and that cancellation is not seen."""
    error = ValueError("task")

    async def block() -> None:
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="task") as caught:
        await block()

    assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_the_blocks_own_error_wins_and_the_others_are_noted() -> None:
    """Whoever wrote the block expects their exception."""
    error = KeyError("block")

    async def block() -> None:
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(fail_at_the_end, ValueError("task"))
            await trio.testing.wait_all_tasks_blocked()
            raise error

    with pytest.raises(KeyError) as caught:
        await block()

    assert caught.value is error
    assert error.__notes__ == ["at the same time: ValueError: task"]


async def test_the_blocks_own_group_stays_a_group() -> None:
    """It is what the block raised."""
    group = ExceptionGroup("mine", [ValueError("a"), ValueError("b")])

    async def block() -> None:
        async with open_nursery_unwrapped():
            raise group

    with pytest.raises(ExceptionGroup) as caught:
        await block()

    assert caught.value is group


async def test_the_first_of_several_tasks_wins() -> None:
    """The rest mostly follow from it."""

    async def block() -> None:
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(fail_at_the_end, ValueError("second"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fail, ValueError("first"))

    with pytest.raises(ValueError, match="first") as caught:
        await block()

    assert caught.value.__notes__ == ["at the same time: ValueError: second"]


async def test_an_interrupt_wins_over_everything() -> None:
    """Nothing may swallow it."""

    async def block() -> None:
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(fail_at_the_end, KeyboardInterrupt())
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError("block")

    with pytest.raises(KeyboardInterrupt):
        await block()


async def test_an_error_during_cancellation_wins_over_it() -> None:
    """And without one, the cancellation reaches its scope."""
    with trio.CancelScope() as scope:
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()

    async def block() -> None:
        with trio.CancelScope() as scope:
            async with open_nursery_unwrapped() as nursery:
                nursery.start_soon(fail_at_the_end, ValueError("cleanup"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    assert scope.cancelled_caught
    with pytest.raises(ValueError, match="cleanup"):
        await block()


async def test_nested_ones_do_not_wrap_either() -> None:
    """However many of them lie in between."""

    async def block() -> None:
        async with open_nursery_unwrapped(), open_nursery_unwrapped() as inner:
            inner.start_soon(fail, ValueError("deep"))

    with pytest.raises(ValueError, match="deep"):
        await block()


async def test_without_an_error_nothing_is_raised() -> None:
    """The nursery's own cancellation is absorbed, as in any nursery."""
    async with open_nursery_unwrapped() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()

    assert nursery.cancel_scope.cancel_called
