"""Whether the host's kernel killed a process because memory ran out.

It sends SIGKILL like anybody else, so the signal does not tell. It leaves two
traces, each readable on some machines only: a line in the kernel's log that names
the process, and a counter of the control group.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from boxlite._evidence import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from boxlite._process import ProcessIdentity

_KERNEL_LOG: Final = Path("/dev/kmsg")
_OWN_GROUPS: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")
#: A record of the log is at most this long (PRINTK_MESSAGE_MAX of Linux, with room).
_RECORD_BYTES: Final = 8192
#: More than any kernel's log holds; but it may be written while it is read.
_RECORDS: Final = 50_000
_LINE_CHARACTERS: Final = 300
# Such as '3,1234,5678901,-;Out of memory: Killed process 42 (qemu) total-vm:...': the
# third field is in microseconds since boot (Documentation/ABI/testing/dev-kmsg of Linux).
_KILL: Final = re.compile(
    rb"\d+,\d+,(?P<time>\d+),[^;]*;"
    rb"(?P<line>(?:Out of memory|Memory cgroup out of memory): Killed process (?P<pid>\d+) [^\n]*)"
)
# The clock of the log and that of process start times are not the same one.
_SLACK_SECONDS: Final = 5.0


def oom_kills(own_groups: Path = _OWN_GROUPS, groups: Path = _GROUPS) -> int | None:
    """Return how many processes of our control group were killed for memory, ever.

    Boxes live in the control group of the program that opened them. None when
    there is no such count to be read.

    Args:
        own_groups: Says which groups this process is in (cgroups(7)).
        groups: Where the file systems of control groups are mounted.
    """
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if controllers == "memory":
            counters = groups / "memory" / path.lstrip("/") / "memory.oom_control"
        elif number == "0" and not controllers:
            counters = groups / path.lstrip("/") / "memory.events"
        else:
            continue
        try:
            counts = dict(entry.split() for entry in counters.read_text().splitlines())
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def killed_for_memory(
    processes: Sequence[ProcessIdentity],
    *,
    kills_before: int | None,
    kernel_log: Path = _KERNEL_LOG,
) -> str:
    """Return what says that one of these processes was killed for memory, or nothing.

    Args:
        processes: The shim and its VM.
        kills_before: What :func:`oom_kills` returned before they were started.
        kernel_log: The kernel's log, as records.
    """
    kills = oom_kills()
    counted = kills is not None and kills_before is not None
    # The counter counts every victim of the group, so it can spare us reading the log.
    if counted and kills == kills_before:
        return ""
    ticks = os.sysconf("SC_CLK_TCK")
    since = {process.pid: process.start_time / ticks for process in processes}
    for record in _records(kernel_log):
        if (found := _KILL.match(record)) is None:
            continue
        seconds = int(found["time"]) / 1e6
        if seconds + _SLACK_SECONDS >= since.get(int(found["pid"]), float("inf")):
            return f"the kernel's log: {printable(found['line'])[:_LINE_CHARACTERS]}"
    if kills is None or kills_before is None:
        return ""
    return (
        f"the kernel has killed {kills - kills_before} process(es) of this control group"
        " for memory since the box was started"
    )


def _records(kernel_log: Path) -> Iterator[bytes]:
    """Yield what is in the log now. A log that cannot be read has nothing in it."""
    try:
        fd = os.open(kernel_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_RECORDS):
            try:
                record = os.read(fd, _RECORD_BYTES)
            except BrokenPipeError:
                continue  # Overwritten before it was read; the next one is there.
            except OSError:
                return  # Read to its end.
            if not record:
                return
            yield record
    finally:
        os.close(fd)
