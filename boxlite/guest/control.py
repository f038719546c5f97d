"""The control port: the handshake that every start goes through, and ``stop``.

The exchange is described in ``boxlite._wire``. Until the host has said ``hello``
the agent blocks in ``wait_hello``, loop and all: this is the point at which a
template is taken, so nothing must be under way in the machine.
"""

from __future__ import annotations

import json
import os
import re
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from boxlite._wire import CONTROL_LINE_BYTES, ENTROPY_BYTES

from . import AGENT_VERSION, console

if TYPE_CHECKING:
    from collections.abc import Callable

    from .edges import EdgePoller

_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_HOSTNAME: Final = re.compile(r"[a-z0-9-]{1,63}")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_ENTROPY: Final = re.compile(rf"[0-9a-f]{{{2 * ENTROPY_BYTES}}}")
_LATEST_NS: Final = (1 << 63) - 1


class ControlError(Exception):
    """A line on the control port that the protocol does not have."""


class Hello(NamedTuple):
    """The host's greeting, once per start."""

    nonce: str
    unix_time_ns: int
    entropy: bytes
    hostname: str
    machine_id: str


class Stop(NamedTuple):
    """The host asks for an orderly end."""


class Prepare(NamedTuple):
    """The host asks for the image to be mounted, before a template is taken again."""

    directory: str


Message = Hello | Stop | Prepare


def parse_line(line: bytes) -> Message:
    """Read one line from the host.

    Raises:
        ControlError: It is not a message of the protocol; says what is wrong with it.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("it is not JSON") from None
    if not isinstance(message, dict):
        raise ControlError("it is not a JSON object")
    kind = message.get("type")
    if kind == "stop":
        return Stop()
    if kind == "prepare":
        directory = message.get("directory")
        if not isinstance(directory, str) or "\0" in directory:
            raise ControlError('its "directory" is not a path')
        return Prepare(directory)
    if kind != "hello":
        raise ControlError('its "type" is none of "hello", "prepare" and "stop"')
    moment = message.get("unix_time_ns")
    if type(moment) is not int or not 0 <= moment <= _LATEST_NS:
        raise ControlError('its "unix_time_ns" is not a number of nanoseconds since 1970')
    nonce = _matching(message, "nonce", _NONCE)
    entropy = _matching(message, "entropy", _ENTROPY)
    hostname = _matching(message, "hostname", _HOSTNAME)
    machine_id = _matching(message, "machine_id", _MACHINE_ID)
    return Hello(nonce, moment, bytes.fromhex(entropy), hostname, machine_id)


def _matching(message: dict[str, Any], field: str, pattern: re.Pattern[str]) -> str:
    value = message.get(field)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ControlError(f'its "{field}" does not match {pattern.pattern}')
    return value


class LineSplitter:
    """Cuts bytes into lines and drops those that are too long, in bounded memory."""

    def __init__(self) -> None:
        self._partial = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes, without their newlines."""
        *lines, rest = (self._partial + data).split(b"\n")
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        self._skipping = self._skipping or len(rest) > CONTROL_LINE_BYTES
        self._partial = b"" if self._skipping else rest
        return [line for line in lines if len(line) <= CONTROL_LINE_BYTES]

    def reset(self) -> None:
        """Forget a line that its sender did not complete."""
        self._partial = b""
        self._skipping = False


class ControlPort:
    """The agent's end of the control port.

    Args:
        fd: The open port, non-blocking. A read of nothing means that no host is
            connected now, not that none will be.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._splitter = LineSplitter()
        self._inbox: deque[Message] = deque()
        self._edge = select.epoll()

    def wait_hello(self, prepare: Callable[[str], None]) -> Hello:
        """Announce the agent and block, without a time limit, until the host greets it.

        Args:
            prepare: Done with the image's working directory as often as the host asks for
                it; then the agent announces itself again.
        """
        self._edge.register(self._fd, select.EPOLLIN | select.EPOLLET)
        announced = False
        while True:
            connected = self._receive()
            while self._inbox:
                message = self._inbox.popleft()
                if isinstance(message, Hello):
                    return message
                if isinstance(message, Prepare):
                    prepare(message.directory)
                    announced = False
            # Once to each host: what is written while none is there is lost, and
            # its being lost is an edge.
            if connected and not announced:
                self._send(f'{{"type": "waiting", "version": "{AGENT_VERSION}"}}\n')
            announced = connected
            self._edge.poll(maxevents=1)

    def send_ready(self, nonce: str) -> None:
        """Tell the host that the guest answers calls."""
        self._send(f'{{"type": "ready", "nonce": "{nonce}"}}\n')

    def watch(self, poller: EdgePoller, on_stop: Callable[[], None]) -> None:
        """From now on call back when the host asks for an orderly end."""

        def readable(_events: int) -> None:
            self._receive()
            while self._inbox:
                if isinstance(self._inbox.popleft(), Stop):
                    on_stop()

        self._edge.close()
        poller.watch(self._fd, readable)
        readable(0)  # A request may have come in one piece with the greeting.

    def _receive(self) -> bool:
        """Read all there is into the inbox; return whether a host is connected."""
        while True:
            try:
                data = os.read(self._fd, CONTROL_LINE_BYTES)
            except BlockingIOError:
                return True
            if not data:
                self._splitter.reset()
                return False
            for line in self._splitter.feed(data):
                try:
                    self._inbox.append(parse_line(line))
                except ControlError as error:
                    console.log(f"ignored a line on the control port: {error}")

    def _send(self, line: str) -> None:
        # Neither a version nor a nonce has anything in it that JSON escapes.
        if os.write(self._fd, line.encode()) != len(line):
            raise OSError(f"the control port took only a part of {line!r}")
