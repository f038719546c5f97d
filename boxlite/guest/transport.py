"""The transport of one connection over a virtio-serial port."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING, Final

from . import edges
from .streams import PIPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .edges import EdgePoller

#: The most that the virtio_console driver takes in one write.
_WRITE_BYTES: Final = 1 << 15
#: From this size on, data is written at once and not copied to be gathered.
_BULK_BYTES: Final = 1 << 14
_HIGH_WATER: Final = 1 << 17
_LOW_WATER: Final = 1 << 15


class PortTransport(asyncio.Transport):
    """The transport of one connection; ends without closing the port.

    Small writes are gathered until the loop's next turn: an answer is several
    small frames, and each write wakes the host.

    Args:
        fd: The open port, non-blocking.
        protocol: Whose bytes it carries.
        poller: Watches the port.
        loop: The running loop.
        on_end: Called when it has ended, with the error if it was one.
    """

    def __init__(
        self,
        fd: int,
        protocol: asyncio.Protocol,
        poller: EdgePoller,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[PortTransport, Exception | None], None],
    ) -> None:
        super().__init__()
        self._fd = fd
        self._protocol = protocol
        self._poller = poller
        self._loop = loop
        self._on_end = on_end
        # What is to be written: first this, then so many bytes from the pipe, then that.
        self._unsent = bytearray()
        self._piped = 0
        self._unsent_after = bytearray()
        self._pipe: tuple[int, int] | None = None
        self._flush_scheduled = False
        self._blocked = False
        self._paused = False
        self._closing = False
        self._ended = False

    def deliver(self, data: bytes | memoryview) -> None:
        """Pass on what the host sent. An error in the protocol ends this connection only.

        Args:
            data: The protocol must copy what it keeps of it.
        """
        if self._closing:
            return
        try:
            self._protocol.data_received(data)  # type: ignore[arg-type] # ours takes both
        except Exception as error:  # noqa: BLE001 - reported by the port, with its traceback
            self._end(error)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; pauses the protocol while too many of them are queued."""
        if self._closing:
            return
        if self._piped:
            self._unsent_after += data
        elif len(data) >= _BULK_BYTES:
            self.flush()  # What was queued before goes first.
            self._unsent += self._write_now(memoryview(data))
        else:
            self._unsent += data
        if not self._flush_scheduled and not self._blocked:
            self._flush_scheduled = True
            self._loop.call_soon(self._scheduled_flush)
        self._pause_or_resume()

    @property
    def pipe(self) -> int:
        """The writing end of a pipe that is empty while the protocol is not paused.

        Raises:
            BrokenPipeError: The connection has ended.
        """
        if self._ended:
            raise BrokenPipeError("the connection has ended")
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return self._pipe[1]

    def write_pipe(self, size: int) -> None:
        """Write what is in the pipe, so many bytes; pauses the protocol until that is done."""
        if self._closing:
            return
        assert not self._piped
        self._piped = size
        self.flush()
        self._pause_or_resume()

    def flush(self) -> None:
        """Write as much as the port takes."""
        self._watch_writable(blocked=False)
        while not self._blocked and not self._ended:
            if self._unsent:
                with memoryview(self._unsent) as view:
                    written = self._write_piece(view)
                del self._unsent[:written]
            elif self._piped:
                self._piped -= self._move_piece()
                if not self._piped:
                    self._unsent, self._unsent_after = self._unsent_after, self._unsent
            else:
                break
        self._pause_or_resume()
        if self._closing and not self.get_write_buffer_size():
            self._end(None)

    def _write_now(self, rest: memoryview) -> memoryview:
        """Write as much as the port takes without copying it; return the rest."""
        while rest and not self._blocked and not self._ended:
            rest = rest[self._write_piece(rest) :]
        return rest

    def _write_piece(self, data: memoryview) -> int:
        """Write some of the data; zero, and wait for an edge, if the port takes none now."""
        try:
            return os.write(self._fd, data[:_WRITE_BYTES])
        except BlockingIOError:
            self._watch_writable(blocked=True)
        except OSError as error:
            self._end(error)
        return 0

    def _move_piece(self) -> int:
        """Do the same with the pipe."""
        assert self._pipe is not None
        try:
            return os.splice(self._pipe[0], self._fd, self._piped, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._watch_writable(blocked=True)
        except OSError as error:
            self._end(error)
        return 0

    def _pause_or_resume(self) -> None:
        queued = self.get_write_buffer_size()
        if not self._paused and (self._piped or queued > _HIGH_WATER):
            self._paused = True
            self._protocol.pause_writing()
        elif self._paused and not self._piped and queued <= _LOW_WATER:
            self._paused = False
            self._protocol.resume_writing()

    def close(self) -> None:
        """Take nothing more from either side, write what is queued, and end."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.flush)

    def abort(self) -> None:
        """End at once; what is queued is dropped."""
        self._end(None)

    def is_closing(self) -> bool:
        """Whether the connection has ended or is about to."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whose bytes these are."""
        return self._protocol

    def get_write_buffer_size(self) -> int:
        """Bytes that are queued."""
        return len(self._unsent) + self._piped + len(self._unsent_after)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _watch_writable(self, *, blocked: bool) -> None:
        if blocked != self._blocked:
            self._blocked = blocked
            self._poller.change(self._fd, edges.IN | edges.OUT if blocked else edges.IN)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._closing = True
        # Not cleared: the end may come of a write, which still has a view of what it writes.
        self._unsent, self._unsent_after = bytearray(), bytearray()
        self._piped = 0
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
        self._watch_writable(blocked=False)
        self._on_end(self, error)
        self._protocol.connection_lost(error)
