"""A nursery that raises plain exceptions instead of groups.

A caller of boxlite writes ``except GuestLostError`` and must not have to know
that a nursery runs inside. So whoever opens one in boxlite opens it here, and
the question "which of several errors is raised" has one answer.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def open_nursery_unwrapped() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that raises one exception, never a group of its own making.

    The first of these that exists is raised:

    1. ``KeyboardInterrupt``, ``SystemExit`` and the like, wherever they came from;
    2. what the block itself raised, unchanged: also when it is a group;
    3. the error of a task, the one that failed first if there are several;
    4. ``trio.Cancelled``, for the scope around the nursery.

    What loses against it is not dropped silently: its type and text are added
    to the winner as a note.
    """
    block_error: BaseException | None = None
    group: BaseExceptionGroup[BaseException] | None = None
    try:
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            try:
                yield nursery
            except BaseException as error:
                block_error = error
                raise
    except BaseExceptionGroup as caught:
        group = caught
    # Raised out here, where the group is no longer being handled: otherwise it
    # would be printed as the context of an exception that it contains.
    if group is not None:
        raise _winner(group, block_error)


def _winner(
    group: BaseExceptionGroup[BaseException], block_error: BaseException | None
) -> BaseException:
    leaves = _leaves(group)
    fatal = [leaf for leaf in leaves if not isinstance(leaf, (Exception, trio.Cancelled))]
    errors = [leaf for leaf in leaves if isinstance(leaf, Exception)]
    # A block that was merely cancelled, by a task's failure for one, says nothing.
    own = [block_error] if block_error and not _is_cancellation(block_error) else []
    winner = [*fatal, *own, *errors, *leaves][0]
    told = {id(leaf) for leaf in _leaves(winner)}
    for leaf in (*fatal, *errors):
        if id(leaf) not in told:
            winner.add_note(f"at the same time: {type(leaf).__name__}: {leaf}")
    return winner


def _is_cancellation(error: BaseException) -> bool:
    return all(isinstance(leaf, trio.Cancelled) for leaf in _leaves(error))


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a tree of groups, in the order in which they were raised."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
