"""A command run to its end: fed, captured, and bounded in time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, Literal

import trio

from ._errors import CommandTimeoutError
from ._result import ExecResult
from ._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._execution import CommandOutput, Execution

    OutputStream = Literal["stdout", "stderr"]
    OnOutput = Callable[[OutputStream, bytes], object]

#: How long a killed command's last output and exit are waited for.
_KILLED_SECONDS: Final = 5.0


class Capture:
    """One stream of output as it comes in, up to a limit; what comes after is counted out.

    Args:
        stream: Which it is.
        limit: The most bytes to keep.
        told: Called with every chunk, kept or not.
    """

    def __init__(self, stream: OutputStream, limit: int, told: OnOutput | None) -> None:
        self._stream = stream
        self._limit = limit
        self._told = told
        self._kept = bytearray()
        self.truncated = False

    @property
    def data(self) -> bytes:
        """What was kept."""
        return bytes(self._kept)

    async def drain(self, output: CommandOutput) -> None:
        """Read the stream to its end."""
        while chunk := await output.receive_some():
            if self._told is not None:
                self._told(self._stream, chunk)
            room = self._limit - len(self._kept)
            self._kept += chunk[:room]
            self.truncated = self.truncated or len(chunk) > room


async def run_to_end(
    execution: Execution,
    data: bytes,
    *,
    seconds: float | None,
    max_output: int,
    on_output: OnOutput | None,
) -> ExecResult:
    """Feed a command, read both of its streams until it has ended, and return how it did.

    Args:
        execution: The command, just started.
        data: For its standard input.
        seconds: After them its whole process group is killed; None for never.
        max_output: Bytes to keep of each stream.
        on_output: Told every chunk.

    Raises:
        CommandTimeoutError: The seconds ran out; has the output so far.
    """
    stdout = Capture("stdout", max_output, on_output)
    stderr = Capture("stderr", max_output, on_output)
    with trio.move_on_after(float("inf") if seconds is None else seconds) as scope:
        await _communicate(execution, data, stdout, stderr)
    if scope.cancelled_caught:
        assert seconds is not None
        with trio.move_on_after(_KILLED_SECONDS):
            await execution.kill()
            await _communicate(execution, None, stdout, stderr)
        # Raised while the command's block is open: leaving that in the ordinary way would
        # wait for the command's end, and the guest may never tell of it.
        result = _result(execution, stdout, stderr)
        raise CommandTimeoutError(execution.words, seconds, result)
    return _result(execution, stdout, stderr)


async def _communicate(
    execution: Execution, data: bytes | None, stdout: Capture, stderr: Capture
) -> None:
    async with open_nursery_unwrapped() as nursery:
        if data is not None:
            nursery.start_soon(execution.feed, data)
        nursery.start_soon(stdout.drain, execution.stdout)
        nursery.start_soon(stderr.drain, execution.stderr)
    await execution.wait()


def _result(execution: Execution, stdout: Capture, stderr: Capture) -> ExecResult:
    """Return the exit, of which a guest may say nothing, together with what was captured."""
    exit_code = execution.returncode
    number = execution.signal
    if exit_code is None:
        exit_code, number = 128 + signal.SIGKILL, signal.SIGKILL
    return ExecResult(
        exit_code=exit_code,
        signal=number,
        stdout=stdout.data,
        stderr=stderr.data,
        stdout_truncated=stdout.truncated,
        stderr_truncated=stderr.truncated,
    )
