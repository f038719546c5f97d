"""A tar becomes a squashfs: the work of ``tar2sqfs``, which is never trusted to end.

zstd at level 1 costs a third of the time of gzip and reads three times as fast; a
box's root is read over and over and made once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import HostError
from boxlite._program import Answer
from boxlite._scopes import open_nursery_unwrapped

from .layer_spool import processors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM: Final = "tar2sqfs"
#: What it may take beside the time for the data, and bytes that it must do in a second.
PATIENCE_SECONDS: Final = 120.0
PATIENCE_RATE: Final = 1 << 20

#: The root is the member ".": without -S links that seem to lead into it are changed.
#: Without -s what cannot be kept is left out in silence.
_OPTIONS: Final = ("-q", "-f", "-s", "-S", "-c", "zstd", "-X", "level=1")
_PIPE_BYTES: Final = 1 << 20  # The most that Linux gives to anybody.
_WORDS_BYTES: Final = 64 << 10
_REAP_SECONDS: Final = 5.0
_JOBS_MAX: Final = 8


def find_tar2sqfs() -> str:
    """Return the path of ``tar2sqfs``.

    Raises:
        HostError: There is none.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(
            f"images need {PROGRAM}, which is not on PATH",
            fix="Run apt-get install squashfs-tools-ng.",
        )
    return found


async def write_squashfs(
    write: Callable[[int], object], out: Path, *, program: str, seconds: float
) -> None:
    """Make a squashfs of a tar, whole and on the disk.

    Cancelling kills the program. It makes ``out``, or raises and leaves nothing.

    Args:
        write: Called in a thread with the descriptor of a pipe, to write the tar to. Its
            ``BrokenPipeError`` means that the program ended, as when this is cancelled.
        out: The file to make; nothing is there yet.
        program: What :func:`find_tar2sqfs` returned.
        seconds: How long it may take.

    Raises:
        HostError: The program cannot be executed, failed, or took too long.
        Exception: What ``write`` raised.
    """
    # Made here, so that what is removed when this fails is ours, and nobody else's to read.
    try:
        await trio.to_thread.run_sync(_reserve, out)
    except OSError as exc:
        raise HostError(
            f"the image's file system {out} cannot be made: {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc
    jobs = min(processors(), _JOBS_MAX)
    argv = [program, *_OPTIONS, "-j", str(jobs), str(out)]
    try:
        problem = await _run(argv, write, seconds)
        if not problem:
            await trio.to_thread.run_sync(_flush, out)
            return
        raise HostError(
            f"the image's file system {out} cannot be made: {problem}",
            fix="Check the space and the rights there.",
        )
    except BaseException:
        _remove(out)
        raise


async def _run(argv: list[str], write: Callable[[int], object], seconds: float) -> str:
    """Run the program; return what is wrong, or nothing."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # With less it works too; an unprivileged user may have used up what there is.
    with suppress(OSError):
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            # Times that a tar does not have are zero, and messages are in English.
            env=dict(os.environ) | {"SOURCE_DATE_EPOCH": "0", "LC_ALL": "C"},
        )
    except OSError as exc:
        os.close(write_end)
        return f"{argv[0]} cannot be executed: {exc.strerror}"
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    words = bytearray()
    is_written = False
    exit_code: int | None = None

    async def feed() -> None:
        nonlocal is_written
        try:
            await trio.to_thread.run_sync(write, write_end)
            is_written = True
        except BrokenPipeError:
            pass  # It has ended, and says itself why.
        finally:
            os.close(write_end)

    assert process.stderr is not None
    async with process.stderr:
        with trio.move_on_after(seconds):
            async with open_nursery_unwrapped() as nursery:
                nursery.start_soon(_read, process.stderr, words)
                nursery.start_soon(feed)
                try:
                    exit_code = await process.wait()
                finally:
                    # In here: the thread that writes ends when the pipe has no reader.
                    if exit_code is None:
                        await _kill(process)
    if exit_code is None:
        return f"{PROGRAM} did not end within {seconds:g} s"
    if exit_code == 0 and is_written:
        return ""
    answer = Answer(exit_code=exit_code, stdout=b"", stderr=bytes(words))
    return answer.last_words or f"{PROGRAM} exited with {exit_code}"


async def _read(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for chunk in stream:
        into += chunk
        del into[:-_WORDS_BYTES]


async def _kill(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Without a shield a cancelled caller would go on while it still writes.
    with trio.move_on_after(_REAP_SECONDS, shield=True):
        await process.wait()


def _reserve(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
