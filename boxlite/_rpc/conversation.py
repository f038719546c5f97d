"""One execution as a conversation: whose turn it is, and who may send how much. No I/O.

::

    STARTING --ExecStarted--> RUNNING --ExecExited--> LAST_WORD --end--> ENDED
        |                                                 ^
        +------------------- ExecRefused -----------------+     (then: FAILED)

    any of them but ENDED --fail()--> FAILED

The last word counts once the guest has ended the call after it: so a command
that is said to have exited cannot write any more, whatever the guest does.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from boxlite._bulk import DATA_BYTES, Channel
from boxlite._errors import BoxliteError, ExecStartError, GuestProtocolError
from boxlite._wire import OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES

from .convert import ExecEvent, ExecExited, ExecRefused, ExecStarted

#: Up to this size, small pieces of output are put together.
_GATHER_BYTES: Final = 1 << 10


class Phase(enum.Enum):
    """Where in the diagram above a conversation is."""

    STARTING = "starting"
    RUNNING = "running"
    LAST_WORD = "last word"
    ENDED = "ended"
    FAILED = "failed"


class Inbox:
    """One output stream: what has arrived and what may still come.

    What may come, what lies here, and what was taken but not yet granted again
    always add up to the window.
    """

    def __init__(self, window: int = OUTPUT_WINDOW_BYTES) -> None:
        self._window = window
        self._room = window
        self._pieces: deque[memoryview] = deque()
        self._size = 0
        self._taken = 0

    def __len__(self) -> int:
        return self._size

    def add(self, data: memoryview) -> None:
        """Store output from the guest, where it lies if that is most of what lies there.

        Raises:
            GuestProtocolError: It is more than the guest was granted.
        """
        if len(data) > self._room:
            raise GuestProtocolError(
                f"the guest sent {len(data)} bytes of output where it may send {self._room}"
            )
        self._room -= len(data)
        self._size += len(data)
        if len(data) < _GATHER_BYTES:  # Many small pieces must not cost many times their bytes.
            last = self._pieces[-1] if self._pieces else None
            if last is not None and len(last) < _GATHER_BYTES:
                self._pieces[-1] = memoryview(bytes(last) + data)
            else:
                self._pieces.append(memoryview(bytes(data)))
        elif 2 * len(data) < memoryview(data.obj).nbytes:
            self._pieces.append(memoryview(bytes(data)))
        else:
            self._pieces.append(data)

    def take(self, max_bytes: int) -> list[memoryview]:
        """Return up to so many bytes, from the beginning, in pieces."""
        taken: list[memoryview] = []
        left = max_bytes
        while left and self._pieces:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
        self._size -= max_bytes - left
        self._taken += max_bytes - left
        return taken

    @property
    def grant_due(self) -> bool:
        """Whether a quarter of the window has been taken: worth a frame to the guest."""
        return 4 * self._taken >= self._window

    def grant(self) -> int:
        """Return the bytes to grant again, and count them as granted."""
        size, self._taken = self._taken, 0
        self._room += size
        return size


class Conversation:
    """What both sides of one execution have said.

    Attributes:
        phase: Where it stands.
        started: The guest's word that the command runs.
        exited: The guest's word that it has ended; final in phase ENDED.
        failure: Why the conversation failed, in phase FAILED.
        inboxes: The output that has not been taken.
        stdin_room: Bytes of standard input that may be sent.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.started: ExecStarted | None = None
        self.exited: ExecExited | None = None
        self.failure: BoxliteError | None = None
        self.inboxes = {Channel.STDOUT: Inbox(), Channel.STDERR: Inbox()}
        self.stdin_room = STDIN_WINDOW_BYTES
        self._refused: ExecRefused | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more can happen in it."""
        return self.phase in (Phase.ENDED, Phase.FAILED)

    def hear(self, event: ExecEvent) -> None:
        """Take what the guest says next.

        Raises:
            GuestProtocolError: It may not say that now.
        """
        match event:
            case ExecStarted():
                self._require(event, Phase.STARTING)
                self.started, self.phase = event, Phase.RUNNING
            case ExecRefused():
                self._require(event, Phase.STARTING)
                self._refused, self.phase = event, Phase.LAST_WORD
            case ExecExited():
                self._require(event, Phase.RUNNING)
                self.exited, self.phase = event, Phase.LAST_WORD

    def hear_data(self, channel: Channel, data: memoryview) -> None:
        """Take bytes that the command wrote.

        They may be heard before the start that was sent before them, because
        messages take longer to get here; see :mod:`boxlite._bulk`.

        Raises:
            GuestProtocolError: The guest may not send them.
        """
        if channel is Channel.STDIN:
            raise GuestProtocolError("the guest sent bytes of standard input, which it only gets")
        if not len(data):
            raise GuestProtocolError(f"the guest ended {channel.name.lower()}, which its exit does")
        self._require(f"{len(data)} bytes of output", Phase.STARTING, Phase.RUNNING)
        self.inboxes[channel].add(data)

    def hear_room(self, channel: Channel, size: int) -> None:
        """Take note that the command has room for more.

        Raises:
            GuestProtocolError: The guest may not say that.
        """
        if channel is not Channel.STDIN:
            raise GuestProtocolError("the guest gave room for output, which it only sends")
        self._require("room for standard input", Phase.STARTING, Phase.RUNNING)
        if not size:
            raise GuestProtocolError("the guest gave 0 bytes of room for standard input")
        if self.stdin_room + size > STDIN_WINDOW_BYTES:
            raise GuestProtocolError(
                f"the guest opened the window of standard input by {size} bytes to"
                f" {self.stdin_room + size}: at most {STDIN_WINDOW_BYTES} are allowed"
            )
        self.stdin_room += size

    def hear_end(self) -> None:
        """Take the guest's orderly end of the call.

        Raises:
            GuestProtocolError: The guest has not said how the command ended.
        """
        if self.phase is not Phase.LAST_WORD:
            raise GuestProtocolError(
                f"the guest ended the call of a command that was {self.phase.value}"
            )
        if self._refused is not None:
            self.fail(
                ExecStartError(self._refused.message, exit_code=self._refused.reason.exit_code)
            )
        else:
            self.phase = Phase.ENDED

    def fail(self, error: BoxliteError) -> None:
        """End the conversation with an error, unless it has ended. The first one stays."""
        if not self.over:
            self.phase, self.failure = Phase.FAILED, error

    def claim_stdin(self, size: int) -> int:
        """Return how many of so many bytes of standard input to send now; they count as sent."""
        if self.phase is not Phase.RUNNING:
            return 0
        claimed = min(size, self.stdin_room, DATA_BYTES)
        self.stdin_room -= claimed
        return claimed

    def _require(self, event: ExecEvent | str, *phases: Phase) -> None:
        if self.phase not in phases:
            what = event if isinstance(event, str) else type(event).__name__
            raise GuestProtocolError(
                f"the guest sent {what} for a command that was {self.phase.value}"
            )
