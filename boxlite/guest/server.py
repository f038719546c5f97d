"""grpclib's server, for connections that it did not accept itself.

The hooks used here are not a documented interface of grpclib; the version is
pinned and the tests of the bridge go through each of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpclib.server
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from h2.events import PingAckReceived
from h2.exceptions import ProtocolError

from boxlite._bulk import BulkError, Splitter
from boxlite._wire import MAX_MESSAGE_BYTES

from . import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpclib.protocol import AbstractHandler, Stream
    from h2.config import H2Configuration

    from boxlite._bulk import Frame

#: RFC 9113, section 3.4.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PING_DATA: Final = b"settled?"


class AgentServer(grpclib.server.Server):
    """Serves gRPC to any number of transports.

    Must be made inside the running loop.
    """

    def __init__(self, services: list[Any]) -> None:
        super().__init__(services, config=Configuration(http2_stream_window_size=MAX_MESSAGE_BYTES))
        self._protocols: set[AgentProtocol] = set()

    def make_protocol(self) -> AgentProtocol:
        """Return the protocol for one new connection."""
        handler = _Handler(
            self._mapping, self._codec, self._status_details_codec, self.__dispatch__
        )
        protocol = AgentProtocol(handler, self._config, self._h2_config, self._protocols.discard)
        self._protocols.add(protocol)
        return protocol

    async def settle(self, timeout: float) -> None:
        """Wait until every host has read what it was sent, or has gone, or ``timeout`` s."""
        acknowledged = [protocol.ping() for protocol in self._protocols]
        if acknowledged:
            await asyncio.wait(acknowledged, timeout=timeout)


class _Handler(grpclib.server.Handler):
    """Refuses a message that is too large when its length is known, not when it has arrived."""

    def accept(
        self,
        stream: Stream,
        headers: list[tuple[str, str]],
        release_stream: Callable[[], Any],
    ) -> None:
        read = stream.recv_data

        async def recv_data(size: int) -> bytes:
            if size > MAX_MESSAGE_BYTES:
                raise GRPCError(
                    Status.RESOURCE_EXHAUSTED,
                    f"a message of {size} bytes: at most {MAX_MESSAGE_BYTES} are allowed",
                )
            return await read(size)

        stream.recv_data = recv_data  # type: ignore[method-assign]
        super().accept(stream, headers, release_stream)


class AgentProtocol(H2Protocol):
    """One connection: it says when it ends, and can tell that its peer has read everything."""

    def __init__(
        self,
        handler: AbstractHandler,
        config: Configuration,
        h2_config: H2Configuration,
        on_lost: Callable[[AgentProtocol], None],
    ) -> None:
        super().__init__(handler, config, h2_config)
        self._on_lost = on_lost
        self._acknowledged: asyncio.Future[None] | None = None
        self._splitter = Splitter(skip=len(PREFACE))
        self.listeners: dict[int, Callable[[Frame], None]] = {}

    def ping(self) -> asyncio.Future[None]:
        """Send a PING; the future is done when it is answered or the connection ends.

        HTTP/2 is ordered, so the answer says that everything before it was read.
        """
        if self._acknowledged is None:
            self._acknowledged = asyncio.get_running_loop().create_future()
            if self.connection.is_closing():
                self._acknowledge()
            else:
                self.connection._connection.ping(_PING_DATA)  # noqa: SLF001
                self.connection.flush()
        return self._acknowledged

    def data_received(self, data: bytes | memoryview) -> None:
        """Process what the host sent; unlike grpclib's own, says GOAWAY on an error."""
        try:
            for part in self._splitter.feed(data):
                if isinstance(part, bytes):
                    self._http2_received(part)
                elif hear := self.listeners.get(part.call):
                    hear(part)  # One for a call that has ended is late, and is dropped.
        except (ProtocolError, BulkError) as error:
            console.log(f"the host broke HTTP/2: {error!s:.200}")
            self.connection.flush()
            self.processor.close("Protocol error")

    def _http2_received(self, data: bytes) -> None:
        events = self.connection.feed(data)
        self.connection.flush()
        for event in events:
            self.processor.process(event)
            if isinstance(event, PingAckReceived):
                self._acknowledge()
        if not self.connection.is_closing():
            self.connection.flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel every call of this connection."""
        super().connection_lost(exc)
        self._acknowledge()
        self._on_lost(self)

    def _acknowledge(self) -> None:
        if self._acknowledged is not None and not self._acknowledged.done():
            self._acknowledged.set_result(None)
