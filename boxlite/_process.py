"""Knowing when a process ends, and that it is the process that was meant.

Linux tells of an exit through a pidfd that becomes readable: for children, for
strangers and for zombies alike, at once and without polling (pidfd_open(2),
Linux 5.3). Only where there is none, on an older kernel or behind a filter of
system calls, the process is looked at again and again. A pid file names a
process by pid *and* start time, because the kernel gives pids out again.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from ._errors import HostError

if TYPE_CHECKING:
    from types import TracebackType

# A pid file is two short numbers; anything longer was not written by a shim.
_PID_FILE_BYTES: Final = 64
#: No kernel gives a pid above this (PID_MAX_LIMIT, proc(5)).
_PID_MAX: Final = 1 << 22
#: How often a process is looked at where there is no pidfd.
POLL_SECONDS: Final = 0.02
#: No such process; or the number is by now that of a thread of another one.
_GONE: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
#: The kernel has no pidfd, or a filter of system calls keeps it from us.
_NO_PIDFD: Final = frozenset({errno.ENOSYS, errno.EPERM})


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
    if not 0 < pid <= _PID_MAX or start_time < 0:
        return None
    return ProcessIdentity(pid, start_time)


def command_line(process: ProcessIdentity | None) -> list[str]:
    """Return the command line of a process; empty when it is gone or may not be seen."""
    if process is None:
        return []
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return [os.fsdecode(word) for word in words] if process.is_alive() else []


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
            reaped; of anybody else's, watch the identity with :meth:`of`.

    Raises:
        HostError: There is no descriptor to be had.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd: int | None = None
        self._somebody_waits = False
        self._others = trio.lowlevel.ParkingLot()
        # Without a pidfd: who is looked at.
        self._looked_at: ProcessIdentity | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except OSError as exc:
            if exc.errno in _NO_PIDFD:
                started = process_start_time(pid)
                self._looked_at = None if started is None else ProcessIdentity(pid, started)
            elif exc.errno not in _GONE:
                raise _no_descriptor(pid, exc) from exc

    @classmethod
    def of(cls, process: ProcessIdentity | None) -> Self:
        """Watch this very process; one that is gone, or None, has ended already.

        Raises:
            HostError: There is no descriptor to be had.
        """
        if process is None:
            watch = cls(_PID_MAX + 1)
        else:
            watch = cls(process.pid)
            # Asked after the watch has it: from now on the pid cannot change hands unseen.
            if not process.is_alive():
                watch.close()
        return watch

    def has_ended(self) -> bool:
        """Tell without blocking whether the process has ended; zombies have."""
        if self._fd is None:
            return self._looked_at is None or not self._looked_at.is_alive()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        """Return when the process has ended. Any number of tasks may wait. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self.has_ended():
            if self._fd is None:
                await trio.sleep(POLL_SECONDS)
            elif self._somebody_waits:
                await self._others.park()
            else:
                await self._wait_for_all(self._fd)

    async def _wait_for_all(self, fd: int) -> None:
        """Wait on the descriptor, which one task at a time may do, and wake the others.

        Returns when there is reason to look again. A duplicate of the descriptor
        for each task would be simpler, and wrong: one that is closed before the
        watch is stays known to epoll, and its events are then taken for those of
        whatever has its number next.
        """
        self._somebody_waits = True
        try:
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(fd)
        finally:
            self._somebody_waits = False
            self._others.unpark_all()

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, never to a later one with its pid. Gone is fine.

        Without a pidfd there is a moment between the look at who it is and the signal.
        """
        with suppress(ProcessLookupError):
            if self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)
            elif self._looked_at is not None and self._looked_at.is_alive():
                os.kill(self.pid, number)

    def close(self) -> None:
        """Release the descriptor; afterwards the process counts as ended. Idempotent."""
        self._looked_at = None
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if self._somebody_waits:
                trio.lowlevel.notify_closing(fd)
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


def _no_descriptor(pid: int, exc: OSError) -> HostError:
    return HostError(
        f"the end of process {pid} cannot be watched: {exc.strerror}",
        fix="If descriptors ran out, raise the limit (ulimit -n).",
    )
