"""The exits of all processes, as only PID 1 gets them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Reaper:
    """Reaps every child, our own and the orphans, and routes the exits of our own."""

    def __init__(self) -> None:
        self._routes: dict[int, Callable[[int], None]] = {}

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap whenever the loop sees SIGCHLD, and what has already died."""
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def route(self, pid: int, on_exit: Callable[[int], None]) -> None:
        """Have the wait status of one child passed on.

        Exits are collected by the loop alone, so a route that is made in the same
        step as the child is never too late.
        """
        self._routes[pid] = on_exit

    def reap(self) -> None:
        """Collect every child that has exited. Signals coalesce: hence every one."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            on_exit = self._routes.pop(pid, None)
            if on_exit is not None:
                on_exit(status)
