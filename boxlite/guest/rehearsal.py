"""A call of each kind before any host is there.

What runs for the first time is slow: caches are empty, pages are not there yet,
the interpreter has not adapted its code. Done here, it is done once per
template and not once per box.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from boxlite._bulk import Splitter
from boxlite._rpc._generated.boxlite.v1 import ExecStart, PingRequest

if TYPE_CHECKING:
    from .server import AgentServer

_SECONDS: Final = 20.0
_COMMAND: Final = (b"/bin/echo", b"rehearsal")
_ROUNDS: Final = 3


class _Memory(asyncio.Transport):
    """Feeds what the server writes to an HTTP/2 client."""

    def __init__(self, client: H2Connection) -> None:
        super().__init__()
        self._client = client
        self._closing = False
        self.ended = asyncio.Event()
        self.received = b""
        self._splitter = Splitter()
        self._protocol: asyncio.BaseProtocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        for part in self._splitter.feed(bytes(data)):
            if isinstance(part, bytes):
                self._take(part)

    def _take(self, data: bytes) -> None:
        for event in self._client.receive_data(data):
            if isinstance(event, DataReceived):
                self.received += event.data
            elif isinstance(event, StreamEnded):
                self.ended.set()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True


async def rehearse(server: AgentServer) -> None:
    """Answer a ping and run a command, from the bytes of the call to those of the answer.

    Raises:
        RuntimeError: A call was not answered: the agent would not serve a host either.
    """
    client = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
    transport = _Memory(client)
    protocol = server.make_protocol()
    client.initiate_connection()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    start = ExecStart(argv=list(_COMMAND), stdout_window=99, stderr_window=99)
    calls: tuple[tuple[str, Any], ...] = (
        ("Guest/Ping", PingRequest(payload=b"rehearsal")),
        ("Execution/Exec", start),
    )
    for path, request in calls * _ROUNDS:
        transport.ended.clear()
        transport.received = b""
        stream = client.get_next_available_stream_id()
        client.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", f"/boxlite.v1.{path}"),
                (":authority", "guest"),
                ("te", "trailers"),
                ("content-type", "application/grpc+proto"),
            ],
        )
        body = bytes(request)
        prefix = struct.pack(">?I", False, len(body))  # noqa: FBT003 - the format's flag
        client.send_data(stream, prefix + body, end_stream=True)
        protocol.data_received(client.data_to_send())
        try:
            async with asyncio.timeout(_SECONDS):
                await transport.ended.wait()
        except TimeoutError:
            raise RuntimeError(f"the rehearsal of {path} was not answered") from None
        if not transport.received:
            raise RuntimeError(f"the rehearsal of {path} failed")
    protocol.connection_lost(None)
