"""The Trio side's hold on one connection: how a call gets to the event loop and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

import trio

from .failures import foreign_errors_translated

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .channel import GuestChannel
    from .lost import Lost

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class EventLoop(Protocol):
    """What is used of a trio-asyncio event loop, which has no types of its own."""

    async def run_aio_coroutine(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run an asyncio-flavoured coroutine to its end, Trio-flavoured."""
        ...


class Link:
    """One event loop, one channel on it, and the calls that are under way.

    Args:
        loop: The loop. It is held here and never looked up: the tasks that make
            calls mostly began before it and do not have it as their current one.
        channel: Connected to the guest.
        lost: Of that connection.
    """

    def __init__(self, loop: EventLoop, channel: GuestChannel, lost: Lost) -> None:
        self.channel = channel
        self.lost = lost
        self._loop = loop
        self._calls = 0
        self._quiet = trio.lowlevel.ParkingLot()

    async def run(
        self,
        call: str,
        function: Callable[[*Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
    ) -> T:
        """Run an asyncio-flavoured function to its end; Trio-flavoured itself.

        Cancelling it cancels the function, and returns when that has ended:
        nothing that waits for the guest may stand in its clean-up.

        Args:
            call: The name of the call, for messages.
            function: A coroutine function that lets ``CancelledError`` through.
            args: For the function.

        Raises:
            BoxliteError: Whatever went wrong, by the table in :mod:`.failures`.
        """
        # A loop that has begun to close would never run the function, and the
        # wait for it could not be cancelled. Hence this order at the end of a
        # connection: it is marked as lost, calls end, the loop closes. There is
        # no checkpoint between this look and the start of the function.
        if self.lost.is_set():
            await trio.lowlevel.checkpoint()
            raise self.lost.error_for(call, sent=False)
        self._calls += 1
        try:
            with foreign_errors_translated(call, self.lost):
                return await self._loop.run_aio_coroutine(function(*args))
        finally:
            self._calls -= 1
            if not self._calls:
                self._quiet.unpark_all()

    async def wait_quiet(self) -> None:
        """Wait until no call is under way."""
        while self._calls:
            await self._quiet.park()
