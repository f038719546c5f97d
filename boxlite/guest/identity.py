"""What must differ between two boxes that were restored from one template."""

from __future__ import annotations

import random
import socket
import time

from . import kernel


def refresh(*, unix_time_ns: int, entropy: bytes, random_fd: int) -> None:
    """Set the clock and reseed the kernel's generator.

    Args:
        unix_time_ns: Nanoseconds since 1970, UTC.
        entropy: Fresh randomness of the host.
        random_fd: Of the kernel's generator.
    """
    time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)
    kernel.add_entropy(random_fd, entropy)


def take_on(*, hostname: str, machine_id: str) -> None:
    """Take on a name and an id, and reseed what this process alone has: Python's generator.

    Args:
        hostname: For the kernel and in /etc.
        machine_id: As in machine-id(5).
    """
    random.seed()
    socket.sethostname(hostname)
    _write("/etc/hostname", f"{hostname}\n")
    _write("/etc/machine-id", f"{machine_id}\n")
    _write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
