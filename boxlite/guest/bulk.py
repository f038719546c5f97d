"""The bulk frames of one call, on the guest's side.

What a command writes gets to the host without a copy in the agent, once there is
much of it: the kernel moves the pages of the command's pipe into a pipe of the
agent's, and those into the port. The first of these moves is what makes the size
of a frame certain before its header is written, whoever else reads that pipe.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from boxlite._bulk import DATA_BYTES, HEADER_BYTES, data_header, room_frame

from .server import AgentProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grpclib.server import Stream

    from boxlite._bulk import Channel, Frame

    from .transport import PortTransport

#: The frames that are copied are made here. New memory for each would cost more than
#: filling it: under emulation, to touch a page first takes as long as to copy ten.
_FRAME: Final = memoryview(bytearray(HEADER_BYTES + DATA_BYTES))


class Bulk:
    """Sends and hears the bulk frames of one call; see :mod:`boxlite._bulk`.

    Attributes:
        buffer: Where a piece is put that is to be copied. It is the same for all
            calls, so there must be no ``await`` until it is sent.
    """

    buffer: Final = _FRAME[HEADER_BYTES:]

    def __init__(self, protocol: AgentProtocol, transport: PortTransport, call: int) -> None:
        self._protocol = protocol
        self._transport = transport
        self._call = call

    @property
    def pipe(self) -> int:
        """The pipe that a piece is moved into. Like ``buffer``, it is the same for all calls."""
        return self._transport.pipe

    @contextmanager
    def heard_by(self, hear: Callable[[Frame], None]) -> Iterator[None]:
        """Have the host's frames heard for as long as the block lasts, at once and in order."""
        self._protocol.listeners[self._call] = hear
        try:
            yield
        finally:
            del self._protocol.listeners[self._call]

    async def wait_writable(self) -> None:
        """Wait until there is room for one piece, which is to be sent without an ``await``."""
        ready = self._protocol.connection.write_ready
        while not ready.is_set():  # Others have waited, too.
            await ready.wait()

    def send_buffer(self, channel: Channel, size: int) -> None:
        """Send the first bytes of the buffer after everything that was sent before."""
        _FRAME[:HEADER_BYTES] = data_header(self._call, channel, size)
        self._transport.write(_FRAME[: HEADER_BYTES + size])

    def send_pipe(self, channel: Channel, size: int) -> None:
        """Send what was moved into the pipe after everything that was sent before."""
        self._transport.write(data_header(self._call, channel, size))
        self._transport.write_pipe(size)

    def grant(self, channel: Channel, size: int) -> None:
        """Give room for so many bytes more."""
        self._transport.write(room_frame(self._call, channel, size))


def bulk_of(call: Stream[Any, Any]) -> Bulk:
    """Return the bulk frames of a call that is being served."""
    stream = call._stream  # noqa: SLF001 - as in .server: the version is pinned
    transport = stream._transport  # noqa: SLF001
    protocol = transport.get_protocol()
    assert isinstance(protocol, AgentProtocol)
    assert stream.id is not None
    return Bulk(protocol, cast("PortTransport", transport), stream.id)
