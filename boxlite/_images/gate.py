"""Keeping what adds to the store and what takes away from it apart."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Gate:
    """Lets any number of tasks add, or one take away.

    Whoever wants to take away waits for those that add, and those that come after
    it wait for it: so it has its turn.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._adding = 0
        self._idle = trio.Event()
        self._idle.set()

    @asynccontextmanager
    async def adding(self) -> AsyncIterator[None]:
        """Add while the block runs: nothing is taken away meanwhile."""
        async with self._turn:
            if not self._adding:
                self._idle = trio.Event()
            self._adding += 1
        try:
            yield
        finally:
            self._adding -= 1
            if not self._adding:
                self._idle.set()

    @asynccontextmanager
    async def removing(self) -> AsyncIterator[None]:
        """Take away while the block runs: nothing is added meanwhile."""
        async with self._turn:
            await self._idle.wait()
            yield
