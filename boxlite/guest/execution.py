"""One command while it runs: its streams, its signals, its end."""

from __future__ import annotations

import asyncio
import os
import termios
from typing import TYPE_CHECKING, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from boxlite._bulk import Channel, Frame, Piece, Resize, Room, Signal
from boxlite._rpc._generated.boxlite.v1 import ExecExited, ExecResponse
from boxlite._wire import STDIN_WINDOW_BYTES

from .refused import RefusedError
from .spawn import Spawned, check_terminal_size, set_terminal_size
from .streams import InputStream, OutputStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite._rpc._generated.boxlite.v1 import ExecStart

    from .bulk import Bulk
    from .edges import EdgePoller
    from .reaper import Reaper

#: How long a background process may hold an output stream open after the command.
LINGER_SECONDS: Final = 0.25
_LAST_SIGNAL: Final = 64


class Execution:
    """A command that has been started.

    Args:
        spawned: The command; its descriptors are this object's from here on.
        start: The request that it was started with.
        poller: Where readiness comes from.
        reaper: Where the exit comes from.
    """

    def __init__(
        self, spawned: Spawned, start: ExecStart, poller: EdgePoller, reaper: Reaper
    ) -> None:
        self.pid: Final = spawned.pid
        self.exited = asyncio.Event()
        self._status = 0
        self._fault: GRPCError | None = None
        self._activity = asyncio.Event()
        wake = self._activity.set
        self._terminal = spawned.stdout if start.terminal is not None else None
        self._stdin = InputStream(
            spawned.stdin,
            STDIN_WINDOW_BYTES,
            poller,
            wake,
            end_mark=b"" if self._terminal is None else _end_of_file(spawned.stdin),
        )
        self._stdout = OutputStream(spawned.stdout, start.stdout_window, poller, wake)
        self._stderr = (
            OutputStream(spawned.stderr, start.stderr_window, poller, wake)
            if spawned.stderr is not None
            else None
        )
        reaper.route(spawned.pid, self._on_exit)

    def hear(self, frame: Frame) -> None:
        """Do what a frame of the host asks, without waiting. One that breaks a rule ends it all."""
        try:
            self._obey(frame)
        except GRPCError as fault:
            self._fault = self._fault or fault
        self._activity.set()

    def _obey(self, frame: Frame) -> None:
        match frame:
            case Piece(_, Channel.STDIN, data):
                if not data:
                    self._stdin.end()
                elif not self._stdin.feed(data):
                    raise _broken("stdin that was not granted, or after its end")
            case Room(_, Channel.STDOUT, size):
                self._stdout.grant(size)
            case Room(_, Channel.STDERR, size):
                if self._stderr is not None:
                    self._stderr.grant(size)
            case Signal(_, number):
                if not 1 <= number <= _LAST_SIGNAL:
                    raise _broken(f"the signal {number}")
                self.signal(number)
            case Resize(_, rows, columns):
                self._resize(rows, columns)
            case _:
                raise _broken(f"a {type(frame).__name__.lower()} for another stream than it may")

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group, if it still has a process."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    async def report(self, send: Callable[[ExecResponse], Awaitable[None]], bulk: Bulk) -> None:
        """Send all that happens until the command has exited and its output is delivered.

        Args:
            send: Sends one message to the host.
            bulk: Sends the output, and room for standard input.

        Raises:
            GRPCError: The host broke a rule of the protocol.
        """
        loop = asyncio.get_running_loop()
        linger: asyncio.TimerHandle | None = None
        try:
            while True:
                if self._fault is not None:
                    raise self._fault
                if await self._send_available(bulk):
                    continue
                if self.exited.is_set():
                    if self._output_finished():
                        break
                    if linger is None:
                        linger = loop.call_later(LINGER_SECONDS, self._seal)
                await self._activity.wait()
                self._activity.clear()
        finally:
            if linger is not None:
                linger.cancel()
        await send(ExecResponse(exited=_describe(self._status)))

    def close(self) -> None:
        """Close the streams."""
        self._stdin.close()
        self._stdout.close()
        if self._stderr is not None:
            self._stderr.close()

    async def _send_available(self, bulk: Bulk) -> bool:
        """Send one chunk of each stream and what stdin has room for; false if there was nothing."""
        await bulk.wait_writable()
        sent = self._stdout.pass_on(bulk, Channel.STDOUT)
        if self._stderr is not None:
            await bulk.wait_writable()
            sent |= self._stderr.pass_on(bulk, Channel.STDERR)
        if granted := self._stdin.grant():
            bulk.grant(Channel.STDIN, granted)
            sent = True
        return sent

    def _output_finished(self) -> bool:
        return self._stdout.finished and (self._stderr is None or self._stderr.finished)

    def _on_exit(self, status: int) -> None:
        self._status = status
        self.exited.set()
        # All that the command wrote is in the pipes by now, edge or no edge.
        self._stdout.look_again()
        if self._stderr is not None:
            self._stderr.look_again()
        self._activity.set()

    def _seal(self) -> None:
        self._stdout.seal()
        if self._stderr is not None:
            self._stderr.seal()
        self._activity.set()

    def _resize(self, rows: int, columns: int) -> None:
        try:
            check_terminal_size(rows, columns)
        except RefusedError as error:
            raise _broken(error.detail) from None
        if self._terminal is not None and not self._stdout.finished:
            set_terminal_size(self._terminal, rows, columns)


def _end_of_file(terminal: int) -> bytes:
    """Return the character that means end of file to a terminal in its usual mode."""
    character = termios.tcgetattr(terminal)[6][termios.VEOF]
    assert isinstance(character, bytes)
    return character


def _describe(status: int) -> ExecExited:
    if os.WIFSIGNALED(status):
        return ExecExited(signal=os.WTERMSIG(status))
    return ExecExited(exit_code=os.WEXITSTATUS(status))


def _broken(what: str) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, f"the host sent {what}")
