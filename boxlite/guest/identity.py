"""What must differ between two boxes that were restored from one template."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from typing import Final

from . import kernel

HOSTNAME: Final = re.compile(r"[a-z0-9-]{1,63}")
MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")


def refresh(*, unix_time_ns: int, entropy: bytes) -> None:
    """Set the clock, and reseed the kernel's generator and then Python's from it.

    Args:
        unix_time_ns: Nanoseconds since 1970, UTC.
        entropy: Fresh randomness of the host.
    """
    time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)
    kernel.add_entropy(entropy)
    random.seed()


def set_identity(hostname: str, machine_id: str) -> None:
    """Give the machine its name and id, for the kernel and in /etc."""
    socket.sethostname(hostname)
    os.makedirs("/etc", exist_ok=True)
    _write("/etc/hostname", f"{hostname}\n")
    _write("/etc/machine-id", f"{machine_id}\n")
    _write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
