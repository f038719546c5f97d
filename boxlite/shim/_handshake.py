"""The control port's protocol without I/O: bytes of the guest in, what to do out.

The exchange is described in :mod:`boxlite._wire`. The guest is hostile: any
bytes in any portions lead to a bounded number of actions, are kept in bounded
memory, and raise nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from boxlite._wire import CONTROL_LINE_BYTES, ENTROPY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: An honest guest sends two lines. One that sends this much is not listened to any more.
GUEST_BYTES: Final = 64 << 10
#: Asks the guest to power off.
STOP_LINE: Final = b'{"type": "stop"}\n'

_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_SHOWN_BYTES: Final = 60
_COMPLAINTS: Final = {
    "oversized": f"the guest sent a control line of more than {CONTROL_LINE_BYTES} bytes",
    "malformed": "the guest sent a control line that is not a JSON object",
    "unexpected": "the guest sent a control message that is not due",
    "wrong nonce": "the guest answered with a nonce that is not this start's",
    "endless": f"the guest sent {GUEST_BYTES} bytes on its control port, which is now left unread",
}


class Send(NamedTuple):
    """Send a line to the guest."""

    line: bytes


class Announce(NamedTuple):
    """Tell the host that the guest of this start is ready."""

    nonce: str


class Note(NamedTuple):
    """Write down what the guest did wrong; comes once for each kind of wrong."""

    text: str


class Save(NamedTuple):
    """Save the machine's state: nothing is under way in it."""


Action = Send | Announce | Save | Note


class Handshake:
    """One start's exchange with the agent.

    A guest may say ``waiting`` again before it is ready: an agent that found
    its port unconnected cannot know what became of its first line.

    Attributes:
        ready: The guest has answered this start's nonce.
        nonce: This start's, once the host has said it.

    Args:
        saving: A guest that waits is never greeted: its machine becomes a template.
        prepare: The working directory of the image that a guest which was restored is asked
            to mount before it is saved; None for no such thing.
        identity: The fields of the greeting that give the guest its identity.
        clock: Returns the time in nanoseconds since 1970.
        entropy: Returns so many random bytes.
    """

    def __init__(
        self,
        *,
        saving: bool = False,
        prepare: str | None = None,
        identity: Mapping[str, str] | None = None,
        clock: Callable[[], int] = time.time_ns,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.ready = False
        self._saving = saving
        self._prepare = prepare
        self._asked = prepare is None
        self._identity = dict(identity or {})
        self._clock = clock
        self._entropy = entropy
        self.nonce: str | None = None
        self._guest_waits = False
        self._partial = b""
        self._skipping = False
        self._budget = GUEST_BYTES
        self._noted: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Whether the guest has sent so much that reading on would only cost."""
        return self._budget == 0

    def begin(self, nonce: str) -> list[Action]:
        """Take this start's nonce, and greet a guest that was quicker.

        Raises:
            ValueError: It is not 32 hexadecimal digits in lower case.
        """
        if not _NONCE.fullmatch(nonce):
            raise ValueError(f"the nonce is {nonce[:40]!r}, not 32 hexadecimal digits")
        self.nonce = nonce
        return [self._answer(nonce)] if self._guest_waits else []

    def resume(self) -> list[Action]:
        """Greet a guest that has just been restored: it waited when it was saved.

        Not before it runs: the greeting has the time in it.
        """
        if self._prepare is not None:
            self._asked = True
            order = {"type": "prepare", "directory": self._prepare}
            return [Send(json.dumps(order).encode() + b"\n")]
        self._guest_waits = True
        return [self._answer(self.nonce)] if self.nonce is not None else []

    def receive(self, data: bytes) -> list[Action]:
        """Take bytes from the guest, in whatever portions they come, and return what to do."""
        return list(self._actions(data))

    def _actions(self, data: bytes) -> Iterator[Action]:
        data = data[: self._budget]
        for line in self._lines(data):
            if line is None:
                yield from self._note("oversized", b"")
            else:
                yield from self._obey(line)
        self._budget -= len(data)
        if self.exhausted:
            yield from self._note("endless", b"")

    def _lines(self, data: bytes) -> Iterator[bytes | None]:
        """Cut bytes into lines; None stands for one that is too long."""
        *lines, rest = (self._partial + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                yield line if len(line) <= CONTROL_LINE_BYTES else None
            self._skipping = False
        if not self._skipping and len(rest) > CONTROL_LINE_BYTES:
            self._skipping = True
            yield None
        self._partial = b"" if self._skipping else rest

    def _obey(self, line: bytes) -> Iterator[Action]:
        message = _parse(line)
        if message is None:
            yield from self._note("malformed", line)
        elif message.get("type") == "waiting" and self._asked and not self.ready:
            self._guest_waits = True
            if self.nonce is not None:
                yield self._answer(self.nonce)
        elif message.get("type") == "ready" and self._guest_waits and not self.ready:
            if self.nonce is None or message.get("nonce") != self.nonce:
                yield from self._note("wrong nonce", line)
            else:
                self.ready = True
                yield Announce(self.nonce)
        else:
            yield from self._note("unexpected", line)

    def _answer(self, nonce: str) -> Send | Save:
        return Save() if self._saving else self._hello(nonce)

    def _hello(self, nonce: str) -> Send:
        hello = {
            "type": "hello",
            "nonce": nonce,
            "unix_time_ns": self._clock(),
            "entropy": self._entropy(ENTROPY_BYTES).hex(),
            **self._identity,
        }
        return Send(json.dumps(hello).encode() + b"\n")

    def _note(self, kind: str, line: bytes) -> Iterator[Note]:
        if kind not in self._noted:
            self._noted.add(kind)
            # repr() lets no control character of the guest through.
            yield Note(f"{_COMPLAINTS[kind]}{': ' if line else ''}{_shown(line)}")


def _shown(line: bytes) -> str:
    return repr(line[:_SHOWN_BYTES]) if line else ""


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    # RecursionError: a few kilobytes of "[" are enough.
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
