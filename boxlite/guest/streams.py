"""The agent's ends of a command's streams, each with its window.

Nothing here waits: an edge marks a stream as ready, and whoever sends to the
host takes what is there. A stream that is not taken from fills up, and then the
kernel stops the command's writes to it, and to no other.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import termios
from collections import deque
from typing import TYPE_CHECKING, Final

from boxlite._bulk import DATA_BYTES

from . import edges

if TYPE_CHECKING:
    from collections.abc import Callable

    from boxlite._bulk import Channel

    from .bulk import Bulk
    from .edges import EdgePoller


#: What a pipe holds unless it is asked to hold more (pipe(7)), and what it is asked to.
_PIPE_AT_FIRST: Final = 1 << 16
PIPE_BYTES: Final = 1 << 20


def _enlarge(fd: int) -> bool:
    """Let a pipe that turns out to be used in bulk hold more, for fewer changes of process.

    Returns:
        Whether it could be done: false for a terminal.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return False
    return True


class OutputStream:
    """The reading end of a command's stdout or stderr.

    Args:
        fd: The pipe or terminal, non-blocking; closed by this object.
        window: Bytes that may be sent before more are granted.
        poller: Where readiness comes from.
        wake: Called when ``pass_on`` may have something.
    """

    def __init__(self, fd: int, window: int, poller: EdgePoller, wake: Callable[[], None]) -> None:
        self._fd = fd
        self._window = window
        self._poller = poller
        self._wake = wake
        self._ready = True
        self._hung_up = False
        self._sealed: int | None = None
        self._open = True
        self._in_bulk = False
        poller.watch(fd, self._on_edge)

    @property
    def finished(self) -> bool:
        """Whether ``pass_on`` will never send anything again."""
        return not self._open

    def grant(self, size: int) -> None:
        """Add to the window."""
        self._window += size

    def pass_on(self, bulk: Bulk, channel: Channel) -> bool:
        """Send the next piece to the host; false when there is none now, or no window for it."""
        if not (self._open and self._ready):
            return False
        if not self._window:
            if self._hung_up and not self._held():
                self.close()  # The end needs no window.
            return False
        size = min(self._window, DATA_BYTES)
        if self._sealed is not None:
            size = min(size, self._sealed)
        try:
            if self._in_bulk:
                taken = os.splice(self._fd, bulk.pipe, size, flags=os.SPLICE_F_NONBLOCK)
            else:
                taken = os.readv(self._fd, [bulk.buffer[:size]])
        except BlockingIOError:
            self._ready = False
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # A terminal that nobody has open any more.
                raise
            taken = 0
        if not taken:
            self.close()
            return False
        if self._in_bulk:
            bulk.send_pipe(channel, taken)
        else:
            bulk.send_buffer(channel, taken)
            self._in_bulk = taken >= _PIPE_AT_FIRST and _enlarge(self._fd)
        self._window -= taken
        if self._sealed is not None:
            self._sealed -= taken
            if not self._sealed:
                self.close()
        return True

    def look_again(self) -> None:
        """Try to read at the next ``pass_on``, whether or not there was an edge."""
        self._ready = True

    def seal(self) -> None:
        """Let ``pass_on`` send what the stream holds now, and nothing that is written later."""
        if self._open:
            self._sealed = self._held()
            self._ready = True
            if not self._sealed:
                self.close()

    def close(self) -> None:
        """Close the reading end; a command that still writes gets SIGPIPE. Idempotent."""
        if self._open:
            self._open = False
            self._poller.forget(self._fd)
            os.close(self._fd)

    def _held(self) -> int:
        held = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, held)
        return held[0]

    def _on_edge(self, events: int) -> None:
        self._ready = True
        self._hung_up = bool(events & edges.HANGUP)
        self._wake()


class InputStream:
    """The writing end of a command's stdin, with what it has not taken yet.

    A command that closes its stdin is not at fault: the rest is dropped and counts
    as taken.

    Args:
        fd: The pipe or terminal, non-blocking; closed by this object.
        window: Bytes that the host may send before more are granted.
        poller: Where readiness comes from.
        wake: Called when more could be granted.
        end_mark: Written at the end, for a terminal: closing would hang it up.
    """

    def __init__(
        self,
        fd: int,
        window: int,
        poller: EdgePoller,
        wake: Callable[[], None],
        *,
        end_mark: bytes = b"",
    ) -> None:
        self._fd = fd
        self._window: Final = window
        self._poller = poller
        self._wake = wake
        self._end_mark = end_mark
        self._queue: deque[memoryview] = deque()
        self._enlarged = False
        self._owed = 0  # Bytes that the host has sent and that were not granted again.
        self._taken = 0  # Of these, the ones that the command has taken.
        self._ended = False
        self._watched = False
        self._open = True

    def feed(self, data: bytes | memoryview) -> bool:
        """Queue bytes of the host; false if they are more than it was granted."""
        if self._ended or self._owed + len(data) > self._window:
            return False
        self._owed += len(data)
        self._queue.append(memoryview(data))
        self._write()
        if self._queue:  # What is left of it lies in a buffer that is somebody else's.
            self._queue[-1] = memoryview(bytes(self._queue[-1]))
        return True

    def end(self) -> None:
        """Close the stream when everything before is written."""
        if not self._ended:
            self._ended = True
            if self._end_mark:
                self._queue.append(memoryview(self._end_mark))
            self._write()

    def grant(self) -> int:
        """Return how many bytes to grant now: zero, or enough to be worth a message."""
        if self._ended or self._taken < self._window // 4:
            return 0
        granted, self._taken = self._taken, 0
        self._owed -= granted
        return granted

    def close(self) -> None:
        """Close the writing end and drop what is queued. Idempotent."""
        if self._open:
            self._open = False
            if self._watched:
                self._poller.forget(self._fd)
            os.close(self._fd)
        self._taken = self._owed
        self._queue.clear()

    def _on_edge(self, _events: int) -> None:
        self._write()

    def _write(self) -> None:
        while self._open and self._queue:
            data = self._queue.popleft()
            try:
                written = os.write(self._fd, data)
            except BlockingIOError:
                self._queue.appendleft(data)
                if not self._watched:
                    self._watched = True
                    self._poller.watch(self._fd, self._on_edge, edges.OUT)
                return
            except OSError as error:
                if error.errno not in {errno.EPIPE, errno.EIO}:
                    raise
                self.close()
                break
            if written >= _PIPE_AT_FIRST and not self._enlarged:
                self._enlarged = True
                _enlarge(self._fd)
            if written < len(data):
                self._queue.appendleft(data[written:])
            self._taken = min(self._taken + written, self._owed)  # An end mark is not owed.
        if not self._open:
            self.close()  # Drops and counts what was fed to a closed stream.
        elif self._ended and not self._end_mark:
            self.close()
        if self._taken >= self._window // 4:
            self._wake()
