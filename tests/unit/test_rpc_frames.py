"""The watch over HTTP/2 frames, whatever way the bytes are cut."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hostile_guest import (
    ANSWER,
    CONTINUATION,
    DATA,
    HEADERS,
    OK,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

from boxlite._bulk import Splitter
from boxlite._errors import GuestProtocolError
from boxlite._rpc.frames import (
    CONTINUATIONS,
    FRAME_BYTES,
    HEADER_BLOCK_BYTES,
    IDLE_FRAMES,
    SETTINGS_FRAMES,
    FrameGuard,
)

HELLO = frame(SETTINGS)


def guarded(data: bytes) -> list[object]:
    """Return what a splitter yields whose frames are guarded."""
    return list(Splitter(FrameGuard().check).feed(data))


def an_ordinary_conversation() -> bytes:
    """Return what h2 sends as a server that answers one call."""
    client = H2Connection(H2Configuration(client_side=True))
    server = H2Connection(H2Configuration(client_side=False))
    client.initiate_connection()
    client.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/"),
                            (":authority", "guest")])  # fmt: skip
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, ANSWER)
    server.send_data(1, bytes(FRAME_BYTES))
    server.send_headers(1, OK, end_stream=True)
    server.close_connection()
    return bytes(server.data_to_send())


@pytest.mark.parametrize("step", [1, 2, 5, 9, 10, 1000, 1 << 20])
def test_an_ordinary_server_passes_in_any_pieces(step: int) -> None:
    """The guard keeps no more than one frame header between two pieces."""
    data = an_ordinary_conversation()
    splitter = Splitter(FrameGuard().check)
    parts: list[object] = []
    for at in range(0, len(data), step):
        parts += splitter.feed(data[at : at + step])

        assert len(splitter._held) < 9
    assert b"".join(part for part in parts if isinstance(part, bytes)) == data


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_a_bad_frame_is_refused_at_its_header(step: int) -> None:
    """Not a byte of its payload is waited for."""
    data = HELLO + (FRAME_BYTES + 1).to_bytes(3, "big") + bytes([DATA, 0]) + b"\0\0\0\x01"
    splitter = Splitter(FrameGuard().check)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    for piece in pieces[:-1]:
        list(splitter.feed(piece))

    with pytest.raises(GuestProtocolError, match=r"\(DATA\) of 16385 bytes"):
        list(splitter.feed(pieces[-1]))


@pytest.mark.parametrize(
    "allowed",
    [
        frame(DATA, bytes(FRAME_BYTES), stream=1),
        frame(HEADERS, b"", stream=1) + frame(CONTINUATION, b"", stream=1) * CONTINUATIONS,
        frame(HEADERS, bytes(FRAME_BYTES), stream=1)
        + frame(CONTINUATION, bytes(HEADER_BLOCK_BYTES - FRAME_BYTES), stream=1),
        frame(SETTINGS, bytes(96)) * (SETTINGS_FRAMES - 1),
        frame(PING, bytes(8)) * (IDLE_FRAMES - 1),
        (frame(WINDOW_UPDATE, bytes(4)) * (IDLE_FRAMES - 1) + frame(DATA, b"x", stream=1)) * 5,
    ],
)
def test_every_limit_allows_what_it_says(allowed: bytes) -> None:
    """One less than too much is fine."""
    assert guarded(HELLO + allowed)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (frame(HEADERS, b"", stream=1) + frame(CONTINUATION) * (CONTINUATIONS + 1), "10 frames"),
        (frame(SETTINGS) * SETTINGS_FRAMES, "number 17"),
        (frame(SETTINGS, bytes(102)), "17 entries"),
        (frame(PING, bytes(8)) * IDLE_FRAMES + frame(RST_STREAM, bytes(4)), "carry nothing"),
        (frame(2, bytes(5)), "PRIORITY"),
        (frame(0x16), "0x16"),
    ],
)
def test_every_limit_refuses_one_more(refused: bytes, words: str) -> None:
    """And the message names what was sent."""
    with pytest.raises(GuestProtocolError, match=words):
        guarded(HELLO + refused)
