"""Edge-triggered readiness inside an asyncio loop.

asyncio's own selector reports levels. Two things here cannot live with that: a
virtio-serial port hangs up for as long as no host is connected, which would
spin the loop, and an output stream whose window is used up must be left alone
without a system call each way. So there is one epoll of our own, watched by the
loop as a single file descriptor.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
HANGUP: Final = select.EPOLLHUP  # Reported without being asked for.
_BATCH: Final = 64

#: Called with the epoll events. An edge may be spurious: a descriptor's number
#: can have been reused while its predecessor's events were on their way.
EdgeCallback = Callable[[int], None]


class EdgePoller:
    """Calls back when the readiness of a descriptor changes.

    A callback must read or write until the kernel says ``EAGAIN``, or remember
    that it has not: there is no second call for the same edge.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, EdgeCallback] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, callback: EdgeCallback, events: int = IN) -> None:
        """Start to watch a descriptor. If it is ready now, that is the first edge."""
        self._epoll.register(fd, events | select.EPOLLET)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Watch other events of the descriptor. What is ready now is an edge again."""
        self._epoll.modify(fd, events | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Stop to watch a descriptor: before it is closed, and at most once."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop everything."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _dispatch(self) -> None:
        for fd, events in self._epoll.poll(0, _BATCH):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)
