"""A guest that controls every byte: HTTP/2 frames by hand over a memory stream."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fake_guest import OPENING, unanswered
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

    from boxlite._rpc.session import GuestSession

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING = range(7)
GOAWAY, WINDOW_UPDATE, CONTINUATION, ALTSVC = range(7, 11)
END_STREAM = 0x1
END_HEADERS = 0x4

ANSWER = [(":status", "200"), ("content-type", "application/grpc+proto")]
OK = [("grpc-status", "0")]


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """Return one HTTP/2 frame (RFC 9113, section 4.1)."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def message(body: bytes, *, announced: int | None = None, compressed: int = 0) -> bytes:
    """Return a gRPC message with its prefix, which need not tell the truth."""
    size = len(body) if announced is None else announced
    return bytes([compressed]) + size.to_bytes(4, "big") + body


class HostileGuest:
    """The other end of a session. It knows enough of HTTP/2 to be asked something."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self._h2.initiate_connection()
        self._opening = len(OPENING)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.send_all(data)

    async def greet(self) -> None:
        """Send the server's preface."""
        await self.send(self._h2.data_to_send())

    async def wait_for_request(self) -> int:
        """Greet, wait until the host asks something, and return the stream of the call."""
        await self.greet()
        while data := await self._stream.receive_some():
            skipped = min(self._opening, len(data))
            self._opening -= skipped
            for event in self._h2.receive_data(bytes(data[skipped:])):
                if isinstance(event, RequestReceived):
                    await self.send(self._h2.data_to_send())
                    assert event.stream_id is not None
                    return event.stream_id
        raise AssertionError("the host ended the connection before it asked anything")

    async def answer(
        self, *bodies: bytes, headers: list[tuple[str, str]] = ANSWER, end: bool = False
    ) -> int:
        """Answer a call: with headers, with these bytes as data, and with a status at the end."""
        stream = await self.wait_for_request()
        self._h2.send_headers(stream, headers)
        await self.send(self._h2.data_to_send())
        for body in bodies:
            await self.send_data(stream, body)
        if end:
            await self.send_headers(stream, OK, end=True)
        return stream

    async def send_data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Send DATA frames without a look at any window."""
        pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)] or [b""]
        for piece in pieces:
            flags = END_STREAM if end and piece is pieces[-1] else 0
            await self.send(frame(DATA, piece, stream=stream, flags=flags))

    async def send_headers(
        self, stream: int, headers: list[tuple[str, str]], *, end: bool = False
    ) -> None:
        """Send a HEADERS frame in h2's encoding."""
        block = self._h2.encoder.encode(headers)
        flags = END_HEADERS | (END_STREAM if end else 0)
        await self.send(frame(HEADERS, block, stream=stream, flags=flags))

    async def close(self) -> None:
        """Hang up."""
        await self._stream.aclose()


@asynccontextmanager
async def attacked(
    cap: float = 60, *, lockstep: bool = False
) -> AsyncIterator[tuple[GuestSession, HostileGuest]]:
    """Give a session and the hostile guest at its other end; fail after so many seconds."""
    async with unanswered(cap, lockstep=lockstep) as (session, theirs):
        yield session, HostileGuest(theirs)
