"""What must differ between two boxes that were restored from one template."""

from __future__ import annotations

import random
import socket
import time

from . import kernel


def assume(*, unix_time_ns: int, entropy: bytes, hostname: str, machine_id: str) -> None:
    """Set the clock, reseed the kernel's generator and then Python's, and take on a name.

    Args:
        unix_time_ns: Nanoseconds since 1970, UTC.
        entropy: Fresh randomness of the host.
        hostname: For the kernel and in /etc.
        machine_id: As in machine-id(5).
    """
    time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)
    kernel.add_entropy(entropy)
    random.seed()
    socket.sethostname(hostname)
    _write("/etc/hostname", f"{hostname}\n")
    _write("/etc/machine-id", f"{machine_id}\n")
    _write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
