"""Bulk frames and HTTP/2's own are told apart, wherever the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hostile_guest import frame
from hypothesis import given, strategies as st

from boxlite._bulk import (
    DATA,
    DATA_BYTES,
    RESIZE,
    ROOM,
    SIGNAL,
    BulkError,
    Channel,
    Frame,
    Piece,
    Resize,
    Room,
    Signal,
    Splitter,
    data_header,
    resize_frame,
    room_frame,
    signal_frame,
)

calls = st.integers(0, (1 << 31) - 1)
channels = st.sampled_from(Channel)
http2 = st.tuples(st.integers(0, 10), st.binary(max_size=40), calls).map(
    lambda parts: frame(parts[0], parts[1], stream=parts[2])
)
pieces = st.builds(Piece, calls, channels, st.binary(max_size=40).map(memoryview))
rooms = st.builds(Room, calls, channels, st.integers(0, (1 << 32) - 1))
signals = st.builds(Signal, calls, st.integers(0, (1 << 32) - 1))
sizes = st.builds(Resize, calls, st.integers(0, 65_535), st.integers(0, 65_535))
frames = st.lists(http2 | pieces | rooms | signals | sizes, max_size=12)


def encoded(part: bytes | Frame) -> bytes:
    """Return a frame as it travels."""
    match part:
        case Piece(call, channel, data):
            return data_header(call, channel, len(data)) + data
        case Room():
            return room_frame(*part)
        case Signal():
            return signal_frame(*part)
        case Resize():
            return resize_frame(*part)
    return part


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes into pieces."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(
    sent=frames,
    places=st.lists(st.integers(0, 1000), max_size=20),
    preface=st.binary(max_size=30),
)
def test_frames_arrive_in_order_and_in_full(
    sent: list[bytes | Frame], places: list[int], preface: bytes
) -> None:
    """HTTP/2 gets all of its bytes and no others, after the preface that has no frames."""
    data = preface + b"".join(encoded(part) for part in sent)
    splitter = Splitter(skip=len(preface))
    plain = b""
    heard: list[Frame] = []
    for fed in cut(data, places):
        for part in splitter.feed(fed):
            if isinstance(part, bytes):
                assert part
                plain += part
            else:
                heard.append(part)

    assert plain == preface + b"".join(part for part in sent if isinstance(part, bytes))
    assert _joined(heard) == _joined([part for part in sent if not isinstance(part, bytes)])


def _joined(parts: list[Frame]) -> list[Frame]:
    """Put the pieces of what was one stream's data together."""
    joined: list[Frame] = []
    for part in parts:
        last = joined[-1] if joined else None
        if (
            isinstance(part, Piece)
            and isinstance(last, Piece)
            and part[:2] == last[:2]
            and part.data
            and last.data
        ):
            joined[-1] = part._replace(data=memoryview(bytes(last.data) + bytes(part.data)))
        else:
            joined.append(part)
    return joined


@given(sent=frames, places=st.lists(st.integers(0, 1000), max_size=20))
def test_every_frame_is_shown_once_and_before_its_payload(
    sent: list[bytes | Frame], places: list[int]
) -> None:
    """So that what is not allowed can be refused at sight."""
    shown: list[tuple[int, int]] = []
    splitter = Splitter(lambda length, kind: shown.append((length, kind)))
    data = b"".join(encoded(part) for part in sent)
    for fed in cut(data, places):
        for _ in splitter.feed(fed):
            pass

    assert shown == [(int.from_bytes(each[:3], "big"), each[3]) for each in map(encoded, sent)]


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 1000), max_size=20))
def test_any_bytes_are_frames_or_an_error(data: bytes, places: list[int]) -> None:
    """And no more is held back than a header."""
    splitter = Splitter()
    fed = out = 0
    try:
        for piece in cut(data, places):
            fed += len(piece)
            for part in splitter.feed(piece):
                out += len(part.data) if isinstance(part, Piece) else len(encoded(part))
            assert len(splitter._held) < len(room_frame(0, Channel.STDIN, 0))
    except BulkError:
        return
    assert out <= fed


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (frame(SIGNAL, bytes(5)), "SIGNAL frame of 5 bytes: it must have 4"),
        (frame(RESIZE, bytes(1)) + bytes(9), "RESIZE frame of 1 bytes: it must have 4"),
        (
            (DATA_BYTES + 1).to_bytes(3, "big") + bytes([DATA, 1, 0, 0, 0, 1]),
            "must have 0 to 1048576",
        ),
        (frame(DATA, b"x", flags=3), "for the stream 3: it must be 0, 1 or 2"),
        (frame(ROOM, bytes(3)) + b"x", "ROOM frame of 3 bytes: it must have 4"),
        (frame(ROOM, bytes(4), flags=9), "for the stream 9"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_named(header: bytes, words: str) -> None:
    """Before any of its payload has come."""
    with pytest.raises(BulkError, match=words):
        list(Splitter().feed(header))
