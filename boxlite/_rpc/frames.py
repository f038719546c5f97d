"""A watch over the HTTP/2 frames of a guest, before any library buffers them.

h2 checks the length of a frame only when it has the whole of it, keeps every
setting it is ever told, answers each PING, and reports some frames in a way
that grpclib turns into the end of an event loop. What is legal but absurd for
a boxlite guest therefore ends here. Frame layout: RFC 9113, section 4.1.
"""

from __future__ import annotations

from typing import Final

from boxlite._bulk import KINDS
from boxlite._errors import GuestProtocolError

#: The largest frame payload: the initial SETTINGS_MAX_FRAME_SIZE, never raised.
FRAME_BYTES: Final = 1 << 14
#: The compressed headers of one answer, continuations included.
HEADER_BLOCK_BYTES: Final = 1 << 15
#: CONTINUATION frames that one header block may have.
CONTINUATIONS: Final = 8
#: Settings in one frame, and SETTINGS frames in the life of a connection:
#: grpclib sends two of its own and acknowledges ours.
SETTINGS_ENTRIES: Final = 16
SETTINGS_FRAMES: Final = 16
#: Frames in a row that carry neither data nor headers.
IDLE_FRAMES: Final = 1000

_SETTING_BYTES: Final = 6
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_NAMES: Final = {
    _DATA: "DATA",
    _HEADERS: "HEADERS",
    2: "PRIORITY",
    _RST: "RST_STREAM",
    _SETTINGS: "SETTINGS",
    5: "PUSH_PROMISE",
    _PING: "PING",
    _GOAWAY: "GOAWAY",
    _WINDOW: "WINDOW_UPDATE",
    _CONTINUATION: "CONTINUATION",
    10: "ALTSVC",
}
_ALLOWED: Final = frozenset(
    {_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION}
)


class FrameGuard:
    """Follows the frames of one connection and refuses what no agent sends."""

    def __init__(self) -> None:
        self._frames = 0
        self._settings = 0
        self._idle = 0
        self._block_bytes = 0
        self._continuations = 0

    def check(self, length: int, kind: int) -> None:
        """Look at the header of the next frame. Show it every one, before anybody acts on it.

        Raises:
            GuestProtocolError: The frame is not allowed. The guard is of no
                further use then.
        """
        name = _NAMES.get(kind, f"type 0x{kind:02x}")
        if not self._frames and kind != _SETTINGS:
            raise GuestProtocolError(
                f"the guest does not speak HTTP/2: it began with what would be"
                f" an HTTP/2 frame ({name}) of {length} bytes"
            )
        self._frames += 1
        if kind in KINDS:  # Their own rules are the splitter's to keep.
            self._idle = 0
            return
        if length > FRAME_BYTES:
            raise GuestProtocolError(
                f"the guest announced an HTTP/2 frame ({name}) of {length} bytes:"
                f" at most {FRAME_BYTES} are allowed"
            )
        if kind not in _ALLOWED:
            raise GuestProtocolError(f"the guest sent an HTTP/2 frame of a kind not used: {name}")
        if kind in (_HEADERS, _CONTINUATION):
            self._check_header_block(kind, length)
        if kind == _SETTINGS:
            self._check_settings(length)
        carries = kind == _HEADERS or (kind == _DATA and length > 0)
        self._idle = 0 if carries else self._idle + 1
        if self._idle > IDLE_FRAMES:
            raise GuestProtocolError(
                f"the guest sent {self._idle} HTTP/2 frames in a row that carry nothing"
                f" (the last one: {name})"
            )

    def _check_header_block(self, kind: int, length: int) -> None:
        if kind == _HEADERS:
            self._block_bytes = self._continuations = 0
        else:
            self._continuations += 1
        self._block_bytes += length
        if self._block_bytes > HEADER_BLOCK_BYTES or self._continuations > CONTINUATIONS:
            raise GuestProtocolError(
                f"the guest sent headers of {self._block_bytes} bytes in"
                f" {self._continuations + 1} frames: at most {HEADER_BLOCK_BYTES} bytes in"
                f" {CONTINUATIONS + 1} frames are allowed"
            )

    def _check_settings(self, length: int) -> None:
        self._settings += 1
        if length > SETTINGS_ENTRIES * _SETTING_BYTES or self._settings > SETTINGS_FRAMES:
            raise GuestProtocolError(
                f"the guest's SETTINGS frame number {self._settings} has"
                f" {length // _SETTING_BYTES} entries: at most {SETTINGS_ENTRIES} in each of"
                f" {SETTINGS_FRAMES} frames are allowed"
            )
