"""Running a program that should answer at once, and not trusting it to."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

#: After SIGKILL a process is gone in milliseconds, unless the kernel holds it.
REAP_SECONDS: Final = 1.0


@attrs.frozen(kw_only=True)
class Answer:
    """What a program said.

    Args:
        exit_code: As it chose it; minus the signal's number if one ended it;
            None if it took too long or wrote too much and was killed.
        stdout: What it wrote to standard output.
        stderr: What it wrote to standard error.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes

    @property
    def last_words(self) -> str:
        """The last line of standard error, fit to be printed, at most 200 characters."""
        lines = self.stderr.decode("ascii", "replace").split("\n")
        for line in reversed(lines):
            if words := "".join(char for char in line if char.isprintable()).strip():
                return words[:200]
        return ""


async def ask(argv: Sequence[str], *, seconds: float, max_bytes: int = 64 << 10) -> Answer:
    """Run a program without input and return what it said.

    It runs in a session of its own, so that what a wrapper started ends with it.
    However this returns, and when it is cancelled, the program has been killed
    and reaped; only one that the kernel itself holds is left after a second.

    Args:
        argv: The program and its arguments.
        seconds: How long it may take.
        max_bytes: The most that it may write to each of the two outputs.

    Raises:
        OSError: The program cannot be executed.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    said = {"stdout": bytearray(), "stderr": bytearray()}
    exit_code: int | None = None
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        try:
            with trio.move_on_after(seconds) as patience:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_read, process.stdout, said["stdout"], max_bytes, patience)
                    nursery.start_soon(_read, process.stderr, said["stderr"], max_bytes, patience)
                exit_code = await process.wait()
        finally:
            await _end(process)
    return Answer(exit_code=exit_code, stdout=bytes(said["stdout"]), stderr=bytes(said["stderr"]))


async def _read(
    stream: trio.abc.ReceiveStream, into: bytearray, limit: int, patience: trio.CancelScope
) -> None:
    async for chunk in stream:
        into += chunk[: limit - len(into)]
        if len(chunk) and len(into) == limit:
            patience.cancel()


async def _end(process: trio.Process) -> None:
    # Asking for the returncode reaps. So if there is none yet, the process is ours
    # to signal, dead or alive, and its id cannot have been given to another.
    if process.returncode is None:
        # A set-uid program is another user's; there the wait below is all we can do.
        with suppress(PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # Without a shield a cancelled caller would leave a zombie behind.
        with trio.move_on_after(REAP_SECONDS, shield=True):
            await process.wait()
