"""Where the kit is made, and the programs that make it: both gone when work ends.

What is being made lies in a directory of its own below the home's ``tmp`` and
leaves it by a rename, whole. A program runs in a session of its own, because
those used here start others: ``dpkg-deb`` leaves the unpacking to two children
that would outlive it and go on writing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from boxlite._scopes import open_nursery_unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from boxlite._layout import HomeLayout

#: A killed program is gone in milliseconds, unless a slow disk holds it in the kernel.
REAP_SECONDS: Final = 5.0


@contextmanager
def open_workshop(home: HomeLayout, purpose: str) -> Iterator[Path]:
    """Make a directory to work in; however the block ends, it is removed.

    Args:
        home: It is made in this home's ``tmp``, on the file system of what will
            be published from it.
        purpose: Begins its name.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=home.tmp))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


async def run_program(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
) -> bytes:
    """Run a program without input and return its standard output.

    Cancelling kills the program and all that it started, and returns when none
    of them can write any more, at most five seconds later.

    Args:
        argv: The program and its arguments.
        cwd: Where it runs.
        env: Variables to set beside those of this process; messages are never
            translated.

    Raises:
        OSError: The program cannot be executed.
        subprocess.CalledProcessError: It failed; ``stderr`` has its words.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    async with process.stdout, process.stderr:
        try:
            async with open_nursery_unwrapped() as nursery:
                nursery.start_soon(_collect, process.stdout, stdout)
                nursery.start_soon(_collect, process.stderr, stderr)
            code = await process.wait()
        except BaseException:
            await _end(process, process.stderr)
            raise
    if code:
        raise subprocess.CalledProcessError(code, list(argv), bytes(stdout), bytes(stderr))
    return bytes(stdout)


def last_words(error: subprocess.CalledProcessError) -> str:
    """Return the last line that a failed program wrote to standard error, or how it ended."""
    said: list[str] = error.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else str(error)


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for chunk in stream:
        into += chunk


async def _end(process: trio.Process, stderr: trio.abc.ReceiveStream) -> None:
    # The leader has not been reaped, so its id is still that of the session, even
    # when the leader itself is dead. Nothing in there has work worth finishing.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Without a shield the workshop would be removed around those still writing in
    # it. All of them hold standard error: when it ends, the last one is gone.
    with trio.move_on_after(REAP_SECONDS, shield=True):
        await _collect(stderr, bytearray())
        await process.wait()
