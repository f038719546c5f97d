"""Knowing when a process ends, and that it is the process that was meant.

Linux tells of an exit through a pidfd that becomes readable: for children, for
strangers and for zombies alike, at once and without polling (pidfd_open(2),
Linux 5.3). A pid file names a process by pid *and* start time, because the
kernel gives pids out again.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs
import trio

if TYPE_CHECKING:
    from types import TracebackType

# A pid file is two short numbers; anything longer was not written by a shim.
_PID_FILE_BYTES = 64


@attrs.frozen
class ProcessIdentity:
    """One process, for as long as it lives and no longer.

    Args:
        pid: The process id.
        start_time: When it started, in clock ticks since boot: field 22 of
            ``/proc/PID/stat`` (proc(5)).
    """

    pid: int
    start_time: int

    def is_alive(self) -> bool:
        """Tell whether this very process is there and is not a zombie."""
        found = _stat(self.pid)
        return found is not None and found == ("alive", self.start_time)


def process_start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot, or None if there is none."""
    found = _stat(pid)
    return None if found is None else found[1]


def read_pid_file(path: Path) -> ProcessIdentity | None:
    """Return who a pid file names, or None if it is missing or not a pid file."""
    try:
        with path.open("rb") as file:
            pid, start_time = (int(line) for line in file.read(_PID_FILE_BYTES).split())
    except (OSError, ValueError):
        return None
    return ProcessIdentity(pid, start_time) if pid > 0 and start_time >= 0 else None


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name is in parentheses and may hold any byte, so count from
    # the last one: the state is the first field after it, the start time the 20th.
    fields = text[text.rindex(b")") + 1 :].split()
    return ("dead" if fields[0] in {b"Z", b"X"} else "alive", int(fields[19]))


class ExitWatch:
    """The end of one process, seen through a pidfd.

    A process that does not exist counts as ended. Use it as a context manager
    or call :meth:`close`; it holds one file descriptor.

    Args:
        pid: The process to watch. If it is a child, it must not have been
            reaped; otherwise check its identity *after* this returns.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None

    def has_ended(self) -> bool:
        """Tell without blocking whether the process has ended; zombies have."""
        if self._fd is None:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        """Return when the process has ended. Any number of tasks may wait. Always a checkpoint."""
        if self._fd is None:
            await trio.lowlevel.checkpoint()
            return
        # Trio allows one waiter per descriptor; a duplicate costs two system calls.
        fd = os.dup(self._fd)
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, never to a later one with its pid. Gone is fine."""
        if self._fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Release the descriptor; afterwards the process counts as ended. Idempotent."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def wait_ended(pid: int | None) -> None:
    """Return when a process has ended: child or not, zombie or long gone.

    Args:
        pid: The process, or None to wait for ever: in a race, a process that is
            not known must never win.
    """
    if pid is None:
        await trio.sleep_forever()
    else:
        with ExitWatch(pid) as watch:
            await watch.wait()
