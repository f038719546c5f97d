"""The commands that are running."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .execution import Execution

#: How long the kernel may take to let go of a process that was killed.
_KILLED_SECONDS: Final = 2.0


class Executions:
    """Every execution that has started and not yet ended."""

    def __init__(self) -> None:
        self._running: set[Execution] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._running)

    def add(self, execution: Execution) -> None:
        """Count an execution in."""
        assert not self.closed
        self._running.add(execution)

    def remove(self, execution: Execution) -> None:
        """Count an execution out."""
        self._running.remove(execution)

    async def end_all(self, grace: float) -> int:
        """Let no execution start any more, and end those that run.

        Args:
            grace: Seconds between SIGTERM and SIGKILL.

        Returns:
            How many commands were still running.
        """
        self.closed = True
        running = [execution for execution in self._running if not execution.exited.is_set()]
        for execution in running:
            execution.signal(signal.SIGTERM)
        await _wait_for_exits(running, grace)
        for execution in running:
            execution.signal(signal.SIGKILL)
        await _wait_for_exits(running, _KILLED_SECONDS)
        return len(running)


async def _wait_for_exits(executions: list[Execution], timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            for execution in executions:
                await execution.exited.wait()
    except TimeoutError:
        return
