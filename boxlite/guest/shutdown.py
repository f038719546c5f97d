"""The one way down, whoever asks for it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from . import console

if TYPE_CHECKING:
    from .executions import Executions
    from .server import AgentServer

_MAX_GRACE_SECONDS: Final = 10.0
#: How long the hosts may take to read the last answers.
_SETTLE_SECONDS: Final = 1.0


class Shutdown:
    """Ends executions, flushes file systems, and lets the agent's main task end."""

    def __init__(self, executions: Executions) -> None:
        self._executions = executions
        self._requested = asyncio.Event()
        self._stopping: asyncio.Task[int] | None = None

    async def end_executions(self, grace: float) -> int:
        """End every execution and flush file systems.

        Args:
            grace: Seconds between SIGTERM and SIGKILL; at most 10.

        Returns:
            How many commands were still running.
        """
        ended = await self._executions.end_all(min(grace, _MAX_GRACE_SECONDS))
        os.sync()
        return ended

    def request_power_off(self) -> None:
        """Have the machine switched off as soon as every answer has been read."""
        self._requested.set()

    def stop(self) -> None:
        """End everything without a grace period; for a request that gets no answer."""
        if self._stopping is None:
            console.log("the host asks for a stop")
            self._stopping = asyncio.create_task(self.end_executions(0))
            self._stopping.add_done_callback(lambda _task: self.request_power_off())

    async def wait(self, server: AgentServer) -> None:
        """Return when the machine may be switched off."""
        await self._requested.wait()
        await server.settle(_SETTLE_SECONDS)
