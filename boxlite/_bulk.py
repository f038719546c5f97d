"""The bytes of a command's streams, as frames of their own kind within HTTP/2.

Everything that is said about a command is a gRPC message. What it reads and
writes is not: a message costs the guest's Python some five milliseconds under
emulation, most of it in HTTP/2 and protobuf, whatever it carries. So these bytes
go beside the messages, in frames that no HTTP/2 library gets to see. RFC 9113,
section 5.5, allows a connection to have frames of other types; their layout is
that of every frame (section 4.1)::

    length (24 bits)   type (8)   channel (8, where HTTP/2 has flags)   call (32)   payload

    DATA    0xB0   1 to 1,048,576 bytes of one of the call's streams
    ROOM    0xB1   4 bytes: so many more bytes of that stream may be sent

The call is the number of its HTTP/2 stream. All frames of a connection are in one
order, messages included: a command's exit, which is a message, never overtakes
its output.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA: Final = 0xB0
ROOM: Final = 0xB1
#: The most that one DATA frame carries.
DATA_BYTES: Final = 1 << 20
#: Every frame of HTTP/2 begins with so many bytes.
HEADER_BYTES: Final = 9

_ROOM_BYTES: Final = 4
_ROOM_FRAME: Final = struct.Struct(">HBBBII")


class Channel(enum.IntEnum):
    """One of a command's streams, by its file descriptor in the command."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class Piece(NamedTuple):
    """Some bytes of a stream: a DATA frame, or what has arrived of one."""

    call: int
    channel: Channel
    data: memoryview


class Room(NamedTuple):
    """More room for a stream: a ROOM frame."""

    call: int
    channel: Channel
    size: int


class BulkError(Exception):
    """A frame of these kinds that breaks their rules."""


def data_header(call: int, channel: Channel, size: int) -> bytes:
    """Return what precedes ``size`` bytes of a stream."""
    assert 0 < size <= DATA_BYTES, size
    return size.to_bytes(3, "big") + bytes((DATA, channel)) + call.to_bytes(4, "big")


def room_frame(call: int, channel: Channel, size: int) -> bytes:
    """Return the frame that gives the other side room for ``size`` more bytes."""
    return _ROOM_FRAME.pack(0, _ROOM_BYTES, ROOM, channel, call, size)


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

    def feed(self, data: bytes) -> Iterator[bytes | Piece | Room]:
        """Take the next bytes, and yield what is in them: HTTP/2's own as ``bytes``.

        Nothing of what is yielded is copied, unless it is HTTP/2's beside ours.
        Take all that it yields before the next call.

        Raises:
            BulkError: A frame breaks the rules above.
        """
        if self._held:
            data, self._held = self._held + data, b""
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
            whole = HEADER_BYTES + _ROOM_BYTES if kind == ROOM else HEADER_BYTES
            if end - at < whole:
                break
            if self._check is not None:
                self._check(length, kind)
            if kind in (DATA, ROOM):
                if at > begin:
                    yield bytes(view[begin:at])
                begin = at + whole
            self._of, self._left = None, length
            if kind == DATA:
                self._of = self._address(view[at:begin], length, low=1, high=DATA_BYTES)
            elif kind == ROOM:
                of = self._address(view[at:begin], length, low=_ROOM_BYTES, high=_ROOM_BYTES)
                self._left = 0
                yield Room(*of, int.from_bytes(view[begin - _ROOM_BYTES : begin], "big"))
            at += whole
        if at > begin:
            yield data if at - begin == len(data) else bytes(view[begin:at])
        self._held = bytes(view[at:])

    @staticmethod
    def _address(header: memoryview, length: int, *, low: int, high: int) -> tuple[int, Channel]:
        name = "DATA" if header[3] == DATA else "ROOM"
        if not low <= length <= high:
            raise BulkError(
                f"a {name} frame of {length} bytes: it must have"
                + (f" {low}" if low == high else f" {low} to {high}")
            )
        if header[4] > Channel.STDERR:
            raise BulkError(f"a {name} frame for the stream {header[4]}: it must be 0, 1 or 2")
        return int.from_bytes(header[5:HEADER_BYTES], "big") & 0x7FFF_FFFF, Channel(header[4])
