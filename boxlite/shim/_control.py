"""The control port's bytes: read in small portions, written without ever blocking."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._reactor import Reactor

#: Small, so that a portion made of nothing but newlines takes milliseconds.
_READ_BYTES: Final = 4096
#: Room for a few greetings. A guest that reads none of them gets no more.
_OUTBOX_BYTES: Final = 8192


class ControlLink:
    """The shim's end of the control port's socket pair.

    Args:
        fd: The socket; closed when the other end is.
        reactor: What calls back.
        received: Told the bytes; returns whether to go on reading.
    """

    def __init__(self, fd: int, reactor: Reactor, received: Callable[[bytes], bool]) -> None:
        self._fd: int | None = fd
        self._reactor = reactor
        self._received = received
        self._reading = select.POLLIN
        self._outbox = b""
        os.set_blocking(fd, False)
        reactor.watch(fd, select.POLLIN, self._serve)

    def send(self, line: bytes) -> bool:
        """Send a line now or as soon as the guest reads; return False if it is dropped.

        It is dropped as a whole: when the other end is closed, or when too much
        is still unread.
        """
        if self._fd is None or len(self._outbox) + len(line) > _OUTBOX_BYTES:
            return False
        self._outbox += line
        self._flush(self._fd)
        return self._fd is not None

    def _serve(self, events: int) -> None:
        fd = self._fd
        assert fd is not None
        if events & select.POLLOUT:
            self._flush(fd)
        elif events & self._reading:
            self._receive(fd)
        else:
            self._close(fd)

    def _receive(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(fd)
        elif not self._received(data):
            self._reading = 0
            if self._fd is not None:
                self._watch(fd)

    def _flush(self, fd: int) -> None:
        try:
            self._outbox = self._outbox[os.write(fd, self._outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close(fd)
            return
        self._watch(fd)

    def _watch(self, fd: int) -> None:
        writing = select.POLLOUT if self._outbox else 0
        self._reactor.watch(fd, self._reading | writing, self._serve)

    def _close(self, fd: int) -> None:
        self._reactor.forget(fd)
        self._fd = None
        os.close(fd)
