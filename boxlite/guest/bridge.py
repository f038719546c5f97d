"""Connections over a virtio-serial port, which itself only carries bytes.

What the guest sees of the host on such a port:

- While no host process is connected a read returns nothing and a poll hangs up.
  That is not final: the next host process uses the same port.
- One read returns at most one buffer of the device, and a buffer never holds
  bytes of two host processes.
- A host process can go and the next one come before the guest has looked.

So the port is opened once and stays open: closing it would throw away the first
bytes of a host that has just come. A connection begins where the client's fixed
HTTP/2 preface begins a read, whatever came before; it ends with the next
preface, with a read of nothing, or when the protocol closes it. Bytes outside a
connection are remains of the previous one and are dropped.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from typing import TYPE_CHECKING, Final

from . import console, edges

if TYPE_CHECKING:
    from collections.abc import Callable

    from .edges import EdgePoller

#: RFC 9113, section 3.4.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: The most that the virtio_console driver takes in one write.
_WRITE_BYTES: Final = 1 << 15
_READ_BYTES: Final = 1 << 15
#: Reads before others get their turn; the device's buffers are 4 KiB each.
_READS_PER_TURN: Final = 16
#: From this size on, data is written at once and not copied to be gathered.
_BULK_BYTES: Final = 1 << 14
_HIGH_WATER: Final = 1 << 17
_LOW_WATER: Final = 1 << 15


class AgentPort:
    """One port, and the connections that follow each other on it.

    Args:
        name: What log lines call it.
        fd: The open port, non-blocking. It stays the caller's to close.
        make_protocol: Called for each connection.
        poller: Where readiness comes from.
        loop: The running loop.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        make_protocol: Callable[[], asyncio.Protocol],
        poller: EdgePoller,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._name = name
        self._fd = fd
        self._make_protocol = make_protocol
        self._poller = poller
        self._loop = loop
        self._connection: PortTransport | None = None
        self._head = b""
        poller.watch(fd, self._on_edge)

    def _on_edge(self, events: int) -> None:
        if events & edges.OUT and self._connection is not None:
            self._connection.flush()
        self._read()

    def _read(self) -> None:
        """Take what has arrived, several reads at once: each pass through h2 costs."""
        received: list[bytes] = []
        absent = False
        for _ in range(_READS_PER_TURN):
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                console.log(f"{self._name}: {error.strerror}")
                data = b""
            if not data:
                absent = True
                break
            if self._connection is None:
                data = self._find_preface(data)
            if data.startswith(PREFACE):
                self._deliver(received)
                received = []
                self._begin()
            received.append(data)
        else:
            self._loop.call_soon(self._read)
        self._deliver(received)
        if absent:
            self._end()

    def _find_preface(self, data: bytes) -> bytes:
        """Return ``data``, preceded by what came before if that began a preface."""
        self._head += data
        if len(self._head) < len(PREFACE) and PREFACE.startswith(self._head):
            return b""
        data, self._head = self._head, b""
        return data

    def _begin(self) -> None:
        self._end()
        protocol = self._make_protocol()
        self._connection = PortTransport(self._fd, protocol, self._poller, self._loop, self._ended)
        protocol.connection_made(self._connection)

    def _deliver(self, received: list[bytes]) -> None:
        if received and self._connection is not None:
            self._connection.deliver(b"".join(received))

    def _end(self) -> None:
        self._head = b""
        if self._connection is not None:
            self._connection.abort()

    def _ended(self, connection: PortTransport, error: Exception | None) -> None:
        if self._connection is connection:
            self._connection = None
        if error is not None:
            traceback.print_exception(error)
            console.log(
                f"{self._name}: dropped the connection: {type(error).__name__}: {error!s:.200}"
            )


class PortTransport(asyncio.Transport):
    """The transport of one connection; ends without closing the port.

    Writes are gathered until the loop's next turn: an answer is several small
    frames, and each write wakes the host.
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
        self._unsent = bytearray()
        self._flush_scheduled = False
        self._blocked = False
        self._paused = False
        self._closing = False
        self._ended = False

    def deliver(self, data: bytes) -> None:
        """Pass on what the host sent. An error in the protocol ends this connection only."""
        if self._closing:
            return
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - reported by the port, with its traceback
            self._end(error)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; pauses the protocol while too many of them are queued."""
        if self._closing:
            return
        if len(data) >= _BULK_BYTES:
            self.flush()  # What was queued before goes first.
            data = self._write_now(data)
        self._unsent += data
        if not self._flush_scheduled and not self._blocked:
            self._flush_scheduled = True
            self._loop.call_soon(self._scheduled_flush)
        if not self._paused and len(self._unsent) > _HIGH_WATER:
            self._paused = True
            self._protocol.pause_writing()

    def _write_now(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Write as much as the port takes without copying it; return the rest."""
        rest = memoryview(data)
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

    def flush(self) -> None:
        """Write as much as the port takes."""
        unsent = self._unsent
        self._watch_writable(blocked=False)
        while unsent and not self._blocked and not self._ended:
            with memoryview(unsent) as view:
                written = self._write_piece(view)
            del unsent[:written]
        if self._paused and len(unsent) <= _LOW_WATER:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing and not unsent:
            self._end(None)

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
        return len(self._unsent)

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
        self._unsent.clear()
        self._watch_writable(blocked=False)
        self._on_end(self, error)
        self._protocol.connection_lost(error)
