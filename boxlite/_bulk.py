"""What passes between a command and the host while it runs, as frames of their own kind.

Everything that is said about a command's start and end is a gRPC message. What it
reads and writes is not: a message costs the guest's Python some five milliseconds
under emulation, most of it in HTTP/2 and protobuf, whatever it carries. So these
bytes go beside the messages, in frames that no HTTP/2 library gets to see, and so
does what must stay in order with them. RFC 9113, section 5.5, allows a connection
to have frames of other types; their layout is that of every frame (section 4.1)::

    length (24 bits)   type (8)   channel (8, where HTTP/2 has flags)   call (32)   payload

    DATA    0xB0   up to 1,048,576 bytes of one of the call's streams; none end it
    ROOM    0xB1   4 bytes: so many more bytes of that stream may be sent
    SIGNAL  0xB2   4 bytes: a signal for the command's process group
    RESIZE  0xB3   2 bytes each: the rows and the columns of its terminal

The call is the number of its HTTP/2 stream. All frames of a connection are in one
order, messages included: a command's exit, which is a message, never overtakes
its output. Only the host ends a stream (standard input), signals and resizes.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA: Final = 0xB0
ROOM: Final = 0xB1
SIGNAL: Final = 0xB2
RESIZE: Final = 0xB3
KINDS: Final = {DATA: "DATA", ROOM: "ROOM", SIGNAL: "SIGNAL", RESIZE: "RESIZE"}
#: The most that one DATA frame carries.
DATA_BYTES: Final = 1 << 20
#: Every frame of HTTP/2 begins with so many bytes.
HEADER_BYTES: Final = 9

_SHORT_BYTES: Final = 4  # What each of these frames carries but DATA.
_SHORT_FRAME: Final = struct.Struct(">HBBBII")


class Channel(enum.IntEnum):
    """One of a command's streams, by its file descriptor in the command."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class Piece(NamedTuple):
    """Some bytes of a stream: a DATA frame, or what has arrived of one. None are its end."""

    call: int
    channel: Channel
    data: memoryview


class Room(NamedTuple):
    """More room for a stream: a ROOM frame."""

    call: int
    channel: Channel
    size: int


class Signal(NamedTuple):
    """A signal for the command's process group: a SIGNAL frame."""

    call: int
    number: int


class Resize(NamedTuple):
    """A new size for the command's terminal: a RESIZE frame."""

    call: int
    rows: int
    columns: int


Frame = Piece | Room | Signal | Resize


class BulkError(Exception):
    """A frame of these kinds that breaks their rules."""


def data_header(call: int, channel: Channel, size: int) -> bytes:
    """Return what precedes ``size`` bytes of a stream; with none of them, it ends the stream."""
    assert 0 <= size <= DATA_BYTES, size
    return size.to_bytes(3, "big") + bytes((DATA, channel)) + call.to_bytes(4, "big")


def room_frame(call: int, channel: Channel, size: int) -> bytes:
    """Return the frame that gives the other side room for ``size`` more bytes."""
    return _SHORT_FRAME.pack(0, _SHORT_BYTES, ROOM, channel, call, size)


def signal_frame(call: int, number: int) -> bytes:
    """Return the frame that sends a signal."""
    return _SHORT_FRAME.pack(0, _SHORT_BYTES, SIGNAL, 0, call, number)


def resize_frame(call: int, rows: int, columns: int) -> bytes:
    """Return the frame that gives a terminal another size."""
    return _SHORT_FRAME.pack(0, _SHORT_BYTES, RESIZE, 0, call, rows << 16 | columns)


class Splitter:
    """Takes these frames out of the bytes of a connection. No I/O.

    It holds at most one frame header.

    Args:
        check: Called with the length and the type of every frame before
            anything of it is passed on; it may raise.
        skip: Bytes before the first frame: a client's preface.
    """

    def __init__(self, check: Callable[[int, int], None] | None = None, *, skip: int = 0) -> None:
        self._check = check
        self._left = skip  # Bytes of the payload that have not come yet.
        self._of: tuple[int, Channel] | None = None  # Whose payload it is, if it is DATA.
        self._held = b""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes | Frame]:
        """Take the next bytes, and yield what is in them: HTTP/2's own as ``bytes``.

        The data of our frames is not copied: it lies in what was fed. Take all that it
        yields before the next call.

        Raises:
            BulkError: A frame breaks the rules above.
        """
        if self._held:
            data, self._held = self._held + bytes(data), b""
        view = memoryview(data)
        begin = at = 0  # What lies between them is HTTP/2's, not yet yielded.
        end = len(view)
        while True:
            if self._left:
                size = min(self._left, end - at)
                self._left -= size
                at += size
                if self._of is not None and size:
                    yield Piece(*self._of, view[at - size : at])
                    begin = at
                if self._left:
                    break
            if end - at < HEADER_BYTES:
                break
            length, kind = int.from_bytes(view[at : at + 3], "big"), view[at + 3]
            short = kind in KINDS and kind != DATA
            whole = HEADER_BYTES + _SHORT_BYTES if short else HEADER_BYTES
            if end - at < whole:
                break
            if self._check is not None:
                self._check(length, kind)
            if kind in KINDS and at > begin:
                yield bytes(view[begin:at])
            self._of, self._left = None, length
            if short:
                self._left = 0
                yield _short_frame(kind, length, view[at : at + whole])
            elif kind == DATA:
                self._of = _stream(kind, length, view[at : at + whole], DATA_BYTES)
                if not length:
                    yield Piece(*self._of, view[:0])
            at += whole
            if kind in KINDS:
                begin = at
        if at > begin:
            if isinstance(data, bytes) and at - begin == len(data):
                yield data
            else:
                yield bytes(view[begin:at])
        self._held = bytes(view[at:])


def _short_frame(kind: int, length: int, frame: memoryview) -> Room | Signal | Resize:
    call, channel = _stream(kind, length, frame, _SHORT_BYTES, low=_SHORT_BYTES)
    value = int.from_bytes(frame[HEADER_BYTES:], "big")
    if kind == ROOM:
        return Room(call, channel, value)
    return Signal(call, value) if kind == SIGNAL else Resize(call, value >> 16, value & 0xFFFF)


def _stream(
    kind: int, length: int, header: memoryview, high: int, *, low: int = 0
) -> tuple[int, Channel]:
    """Return whose frame it is, and of which stream."""
    if not low <= length <= high:
        allowed = f"{low}" if low == high else f"{low} to {high}"
        raise BulkError(f"a {KINDS[kind]} frame of {length} bytes: it must have {allowed}")
    if header[4] > Channel.STDERR:
        raise BulkError(f"a {KINDS[kind]} frame for the stream {header[4]}: it must be 0, 1 or 2")
    return int.from_bytes(header[5:HEADER_BYTES], "big") & 0x7FFF_FFFF, Channel(header[4])
