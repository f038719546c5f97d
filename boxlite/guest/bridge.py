"""Connections over a virtio-serial port, which itself only carries bytes.

What the guest sees of the host on such a port:

- While no host process is connected a read returns nothing and a poll hangs up.
  That is not final: the next host process uses the same port.
- One read returns at most one buffer of the device, and a buffer never holds
  bytes of two host processes.
- A host process can go and the next one come before the guest has looked.

So the port is opened once and stays open: closing it would throw away the first
bytes of a host that has just come. A connection begins where the opening of this
boot's hosts begins a read, whatever came before; it ends with the next opening,
with a read of nothing, or when the protocol closes it. Bytes outside a connection
are remains of the previous one and are dropped.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Final

from . import console, edges
from .transport import PortTransport

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from .edges import EdgePoller

#: The device's buffers. A vectored read takes one of them for each of its parts, and
#: stops at one that is not full.
_BUFFER_BYTES: Final = 1 << 12
_BUFFERS: Final = 128  # All that a port has.
_READ: Final = memoryview(bytearray(_BUFFERS * _BUFFER_BYTES))
_READ_PARTS: Final = [_READ[at : at + _BUFFER_BYTES] for at in range(0, len(_READ), _BUFFER_BYTES)]
#: What is read at once from this size on is passed on where it lies.
_LARGE_BYTES: Final = 1 << 15
#: Reads before others get their turn.
_READS_PER_TURN: Final = 4


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
        self._opening = b""
        poller.watch(fd, self._on_edge)

    def admit(self, opening: bytes) -> None:
        """Let hosts connect that begin with these bytes; before, nobody can."""
        self._opening = opening

    def _on_edge(self, events: int) -> None:
        if events & edges.OUT and self._connection is not None:
            self._connection.flush()
        self._read()

    def _read(self) -> None:
        """Take what has arrived: large reads one by one, small ones together.

        Each pass through h2 costs; and so does each copy of what is large.
        """
        small: list[bytes] = []
        absent = False
        for _ in range(_READS_PER_TURN):
            try:
                size = os.readv(self._fd, _READ_PARTS)
            except BlockingIOError:
                break
            except OSError as error:
                console.log(f"{self._name}: {error.strerror}")
                size = 0
            if not size:
                absent = True
                break
            for data in self._by_host(_READ[:size]):
                self._take(data, small)
        else:
            self._loop.call_soon(self._read)
        self._deliver_small(small)
        if absent:
            self._end()

    def _by_host(self, data: memoryview) -> Iterator[memoryview]:
        """Divide what was read where another host begins, which is at the beginning of a buffer."""
        begin, at = 0, 1
        firsts = bytes(data[::_BUFFER_BYTES])
        while self._opening and (at := firsts.find(self._opening[0], at)) > 0:
            if self._opens(data[at * _BUFFER_BYTES :]):
                yield data[begin : at * _BUFFER_BYTES]
                begin = at * _BUFFER_BYTES
            at += 1
        yield data[begin:]

    def _opens(self, data: memoryview) -> bool:
        return bool(self._opening) and data[: len(self._opening)].tobytes() == self._opening

    def _take(self, data: memoryview, small: list[bytes]) -> None:
        """Deliver what one host sent, or add it to what was small and of the same host."""
        if self._connection is None:
            data = self._find_opening(data)
        if self._opens(data):
            self._deliver_small(small)
            self._begin()
            data = data[len(self._opening) :]
        if len(data) >= _LARGE_BYTES:
            self._deliver_small(small)
            if self._connection is not None:
                self._connection.deliver(data)
        elif data:
            small.append(bytes(data))

    def _find_opening(self, data: memoryview) -> memoryview:
        """Return ``data``, preceded by what came before if that began an opening."""
        if self._opens(data):
            return data
        self._head += data[: len(self._opening)]
        if len(self._head) < len(self._opening) and self._opening.startswith(self._head):
            return memoryview(b"")
        head, self._head = self._head, b""
        return memoryview(head + data[len(self._opening) :])

    def _begin(self) -> None:
        self._end()
        protocol = self._make_protocol()
        self._connection = PortTransport(self._fd, protocol, self._poller, self._loop, self._ended)
        protocol.connection_made(self._connection)

    def _deliver_small(self, small: list[bytes]) -> None:
        if small and self._connection is not None:
            self._connection.deliver(small[0] if len(small) == 1 else b"".join(small))
        small.clear()

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
