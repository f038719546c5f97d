"""Running a program to its end, and not trusting it to have one.

A program runs in a session of its own, because some start others: ``dpkg-deb``
leaves the unpacking to two children that would outlive it and go on writing, and
a wrapper may stand where QEMU is expected.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from ._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: A killed program is gone in milliseconds, unless a slow disk holds it in the kernel.
REAP_SECONDS: Final = 5.0


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


async def ask(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    seconds: float = math.inf,
    max_bytes: int = 64 << 10,
    cwd: str | Path = "/",
    env: Mapping[str, str] | None = None,
) -> Answer:
    """Run a program and return what it said.

    Cancelling kills it. When this ends because of that, or of a limit, whatever
    the program had started is killed too and can write no more; only what the
    kernel itself holds is left after five seconds.

    Args:
        argv: The program and its arguments.
        stdin: What it is given to read, after which its input ends. It need not read it.
        seconds: How long it may take. Default: as long as it likes.
        max_bytes: The most that it may write to each of the two outputs. Default 64 KiB.
        cwd: Where it runs.
        env: Its variables. Default: those of this process.

    Raises:
        OSError: The program cannot be executed.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=cwd,
        env=env,
    )
    stdout, stderr = bytearray(), bytearray()
    exit_code: int | None = None
    assert process.stdout is not None
    assert process.stderr is not None
    async with AsyncExitStack() as streams:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await streams.enter_async_context(stream)
        try:
            with trio.move_on_after(seconds) as patience:
                async with open_nursery_unwrapped() as nursery:
                    if process.stdin is not None:
                        nursery.start_soon(_write, process.stdin, stdin)
                    nursery.start_soon(_read, process.stdout, stdout, max_bytes, patience)
                    nursery.start_soon(_read, process.stderr, stderr, max_bytes, patience)
                exit_code = await process.wait()
        finally:
            if exit_code is None:
                await _end(process, process.stderr)
    return Answer(exit_code=exit_code, stdout=bytes(stdout), stderr=bytes(stderr))


async def _write(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        # A program that has heard enough closes its input, or ends.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)


async def _read(
    stream: trio.abc.ReceiveStream, into: bytearray, limit: int, patience: trio.CancelScope
) -> None:
    async for chunk in stream:
        into += chunk[: limit - len(into)]
        if len(into) == limit:
            patience.cancel()


async def _end(process: trio.Process, stderr: trio.abc.ReceiveStream) -> None:
    # The leader has not been reaped, so its id is still that of the session, even when
    # the leader itself is dead. A set-uid program is another user's, and not ours to kill.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # Without a shield a cancelled caller would go on while they still write. All of
    # them hold standard error: when it ends, the last one is gone.
    with trio.move_on_after(REAP_SECONDS, shield=True):
        async for _ in stderr:
            pass
        await process.wait()
