"""The device nodes that programs take for granted, and the links to a process's own streams."""

from __future__ import annotations

import os
import stat
from typing import Final

# Name, major, minor, mode (Documentation/admin-guide/devices.txt).
_NODES: Final = (
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
)
#: Of the machine: its console, and the terminals of its own /dev/pts.
_MACHINE_NODES: Final = (
    ("console", 5, 1, 0o600),
    ("ptmx", 5, 2, 0o666),
)
_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)


def make_nodes(*, machine: bool) -> None:
    """Make those in /dev that are not there.

    Args:
        machine: Make those as well that are the machine's own.

    Raises:
        OSError: One of them cannot be made.
    """
    for name, major, minor, mode in (*_NODES, *(_MACHINE_NODES if machine else ())):
        path = f"/dev/{name}"
        if not os.path.lexists(path):
            os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
            os.chmod(path, mode)  # The umask took bits away.
    for link, target in _LINKS:
        if not os.path.lexists(link):
            os.symlink(target, link)
