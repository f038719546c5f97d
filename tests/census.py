"""What a box could leave behind, counted."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_files() -> Counter[str]:
    """Return what this process has open; pipes and sockets without their numbers."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        # The descriptor of this listing is gone by now.
        with suppress(FileNotFoundError):
            target = str(Path(f"/proc/self/fd/{fd}").readlink())
            found[target.split("[")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return found


def children() -> set[int]:
    """Return the children of this process, zombies included."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def processes_of(home: Path) -> Iterator[int]:
    """Yield the processes that work for a home, zombies of ours included.

    A shim has the home in its command line; so has a QEMU that boots, and one that
    is restored has a file of it open.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with suppress(OSError):
                if _is_zombie_of_ours(entry) or _works_for(entry, home):
                    yield int(entry.name)


def _is_zombie_of_ours(entry: Path) -> bool:
    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
    return state == "Z" and int(parent) == os.getpid()


def _works_for(entry: Path, home: Path) -> bool:
    needle = f"{home}/"
    if os.fsencode(needle) in (entry / "cmdline").read_bytes():
        return True
    return any(str(link.readlink()).startswith(needle) for link in (entry / "fd").iterdir())


@attrs.frozen
class Census:
    """What there is at one moment.

    Attributes:
        processes: Those that work for the home.
        files: What this process has open.
        threads: Its threads, but for those that Trio keeps idle for ten seconds.
        boxes: The directories of boxes.
    """

    processes: frozenset[int]
    files: Counter[str]
    threads: frozenset[str]
    boxes: frozenset[str]

    @classmethod
    def take(cls, home: Path) -> Census:
        """Count now."""
        gc.collect()
        names = (thread.name for thread in threading.enumerate())
        return cls(
            processes=frozenset(processes_of(home)),
            files=open_files(),
            threads=frozenset(name for name in names if not name.startswith("Trio thread")),
            boxes=frozenset(path.name for path in (home / "boxes").iterdir()),
        )
