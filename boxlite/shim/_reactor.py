"""The loop: descriptors with their callbacks, and timers, around one ``poll``."""

from __future__ import annotations

import math
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Reactor:
    """Calls back when a descriptor is ready or a time has come.

    Each round serves every ready descriptor once, so that a guest that floods
    one of them does not keep the loop from the others.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events of poll(2) when there are any. Replaces an earlier call."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, so many seconds from now."""
        self._timers.append((time.monotonic() + seconds, callback))

    def turn(self) -> None:
        """Wait until something is due and serve it."""
        for fd, events in self._poll.poll(self._patience()):
            # An earlier callback of this round may have forgotten it.
            if (callback := self._callbacks.get(fd)) is not None:
                callback(events)
        now = time.monotonic()
        due = [callback for when, callback in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for call in due:
            call()

    def _patience(self) -> int | None:
        if not self._timers:
            return None
        first = min(when for when, _ in self._timers)
        return max(0, math.ceil((first - time.monotonic()) * 1000))
