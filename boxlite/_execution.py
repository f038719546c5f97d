"""A command while it runs, with Trio's own kinds of stream."""

from __future__ import annotations

from contextlib import suppress
from secrets import token_hex
from signal import Signals
from typing import TYPE_CHECKING, Literal

import trio

from ._bulk import DATA_BYTES, Channel
from ._command import TerminalSize
from ._errors import InvalidOptionError
from ._result import ExecResult
from ._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from ._rpc.execution import RawExecution


class CommandInput(trio.abc.SendStream):
    """A command's standard input.

    Sending waits while the command does not read: at most 2 MiB are on the
    way, and 1 MiB more in its pipe. Closing it is the end of the command's input.
    """

    def __init__(self, raw: RawExecution) -> None:
        self._raw = raw
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of the data.

        Raises:
            trio.BrokenResourceError: The command has ended.
            trio.ClosedResourceError: This end was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        await self._raw.send_stdin(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Checkpoint; whether sending will block is the guest's to know."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close standard input. Idempotent; a command that has ended is fine."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        with suppress(trio.BrokenResourceError):
            await self._raw.close_stdin()


class CommandOutput(trio.abc.ReceiveStream):
    """A command's standard output or standard error.

    A stream that nobody reads stops the command's writing to it after 2 MiB, and
    1 MiB more in its pipe, and does not hold up the other one.
    """

    def __init__(self, raw: RawExecution, stream: Literal[Channel.STDOUT, Channel.STDERR]) -> None:
        self._raw = raw
        self._stream = stream
        self._closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return some bytes as soon as there are any; ``b""`` at the end."""
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        if max_bytes is None:
            max_bytes = DATA_BYTES
        if max_bytes < 1:
            raise InvalidOptionError("max_bytes", max_bytes, "at least 1")
        return await self._raw.receive(self._stream, max_bytes)

    async def discard(self) -> None:
        """Read to the end and drop it."""
        while await self._raw.receive(self._stream):
            pass

    async def aclose(self) -> None:
        """Stop reading; what still comes is dropped when the block ends. Idempotent."""
        self._closed = True
        await trio.lowlevel.checkpoint()


class Execution:
    """One command in a box, from start to exit.

    Attributes:
        id: 16 hexadecimal digits that no other execution has.
        stdin: Its standard input.
        stdout: Its standard output; everything, with a terminal or ``merge_stderr``.
        stderr: Its standard error.
        pid: Its process id in the guest.
        words: Its arguments, as text.
    """

    def __init__(self, raw: RawExecution, *, pid: int, words: tuple[str, ...]) -> None:
        self._raw = raw
        self.stdin = CommandInput(raw)
        self.stdout = CommandOutput(raw, Channel.STDOUT)
        self.stderr = CommandOutput(raw, Channel.STDERR)
        self.pid = pid
        self.words = words
        self.id = token_hex(8)
        self._exit: ExecResult | None = None

    def __repr__(self) -> str:
        state = "running" if self._exit is None else self._exit.describe()
        return f"<boxlite.Execution {self.id} pid {self.pid} {state}>"

    @property
    def returncode(self) -> int | None:
        """The exit code once :meth:`wait` has returned: 128 + n for signal n; None before."""
        return None if self._exit is None else self._exit.exit_code

    @property
    def signal(self) -> int | None:
        """The signal that ended the command, once :meth:`wait` has returned; None if none did."""
        return None if self._exit is None else self._exit.signal

    async def wait(self) -> int:
        """Return the exit code when the command has ended: 128 + n for signal n.

        As with a process on the host, a command whose output nobody reads may
        never end.
        """
        exited = await self._raw.wait()
        number = exited.signal or None
        code = exited.exit_code if number is None else 128 + number
        self._exit = ExecResult(exit_code=code, signal=number)
        return code

    async def send_signal(self, number: int) -> None:
        """Send a signal to the command's process group. A command that has ended is fine."""
        try:
            await self._raw.send_signal(Signals(number).value)
        except ValueError:
            raise InvalidOptionError("signal", number, "the number of a signal") from None
        except trio.BrokenResourceError:
            pass

    async def terminate(self) -> None:
        """Send SIGTERM to the command's process group."""
        await self.send_signal(Signals.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL to the command's process group."""
        await self.send_signal(Signals.SIGKILL)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size. Without one, nothing happens.

        Args:
            rows: 1 to 65,535.
            columns: 1 to 65,535.

        Raises:
            InvalidOptionError: A terminal cannot have that size.
        """
        size = TerminalSize(rows=rows, columns=columns)
        await self._raw.resize(size.rows, size.columns)

    async def feed(self, data: bytes) -> None:
        """Send data to standard input and close it; a command that does not want it is fine."""
        with suppress(trio.BrokenResourceError):
            await self.stdin.send_all(data)
        await self.stdin.aclose()

    async def finish(self) -> None:
        """Close standard input, drop unread output and wait for the command to end."""
        await self.stdin.aclose()
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(self.stdout.discard)
            nursery.start_soon(self.stderr.discard)
        await self.wait()
