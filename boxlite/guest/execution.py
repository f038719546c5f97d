"""One command while it runs: its streams, its signals, its end."""

from __future__ import annotations

import asyncio
import os
import termios
from typing import TYPE_CHECKING, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from boxlite._bulk import Channel, Piece, Room
from boxlite._rpc._generated.boxlite.v1 import ExecExited, ExecResponse
from boxlite._wire import STDIN_WINDOW_BYTES

from .spawn import RefusedError, Spawned, check_terminal_size, set_terminal_size
from .streams import InputStream, OutputStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from boxlite._rpc._generated.boxlite.v1 import ExecRequest, ExecStart, TerminalSize

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

    def obey(self, request: ExecRequest) -> None:
        """Do what one message of the host asks, without waiting.

        Raises:
            GRPCError: The message breaks a rule of the protocol.
        """
        if request.stdin_end is not None:
            self._stdin.end()
        elif request.signal is not None:
            if not 1 <= request.signal <= _LAST_SIGNAL:
                raise _broken(f"the signal {request.signal}")
            self.signal(request.signal)
        elif request.resize is not None:
            self._resize(request.resize)
        else:
            raise _broken("a second start, or an empty message")

    def hear(self, frame: Piece | Room) -> None:
        """Take standard input, or room for output. One that breaks a rule ends the command."""
        if isinstance(frame, Piece):
            if frame.channel is not Channel.STDIN:
                self._fault = _broken("bytes for an output stream")
            elif not self._stdin.feed(frame.data):
                self._fault = _broken("stdin that was not granted, or after its end")
        elif frame.channel is Channel.STDOUT:
            self._stdout.grant(frame.size)
        elif frame.channel is Channel.STDERR:
            if self._stderr is not None:
                self._stderr.grant(frame.size)
        else:
            self._fault = _broken("room for its own stdin")
        self._activity.set()

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group, if it still has a process."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    async def report(
        self,
        send: Callable[[ExecResponse], Awaitable[None]],
        bulk: Bulk,
        requests: asyncio.Task[None],
    ) -> None:
        """Send all that happens until the command has exited and its output is delivered.

        Args:
            send: Sends one message to the host.
            bulk: Sends the output, and room for standard input.
            requests: The task that obeys the host. It ends early only by raising,
                and then this raises the same.
        """
        requests.add_done_callback(self._on_requests_end)
        loop = asyncio.get_running_loop()
        linger: asyncio.TimerHandle | None = None
        try:
            while True:
                if requests.done():
                    requests.result()
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

    def _on_requests_end(self, requests: asyncio.Task[None]) -> None:
        if not requests.cancelled():
            requests.exception()  # Seen here, in case the command ended in the same moment.
        self._activity.set()

    def _seal(self) -> None:
        self._stdout.seal()
        if self._stderr is not None:
            self._stderr.seal()
        self._activity.set()

    def _resize(self, size: TerminalSize) -> None:
        try:
            check_terminal_size(size)
        except RefusedError as error:
            raise _broken(error.detail) from None
        if self._terminal is not None and not self._stdout.finished:
            set_terminal_size(self._terminal, size)


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
