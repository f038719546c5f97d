"""The virtio-serial ports, found by name.

A port has its number when it appears, but its name comes in a message of its
own. The kernel announces both, so the wait is for its announcements: no polling.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

_CLASS_DIRECTORY: Final = "/sys/class/virtio-ports"
_KOBJECT_UEVENT: Final = 15  # NETLINK_KOBJECT_UEVENT of linux/netlink.h
_UEVENT_BYTES: Final = 8192


class PortsMissingError(Exception):
    """The ports that the host should have given to this machine did not appear."""


def find_ports(class_directory: str = _CLASS_DIRECTORY) -> dict[str, str]:
    """Return the ports that have a name: name to kernel device, such as ``vport0p1``."""
    try:
        devices = os.listdir(class_directory)
    except FileNotFoundError:
        return {}
    found = {}
    for device in devices:
        try:
            with open(f"{class_directory}/{device}/name", encoding="ascii") as file:
                found[file.read().strip()] = device
        except FileNotFoundError:
            continue  # Its name has not arrived yet; that will be an event.
    return found


def wait_for_ports(names: Collection[str], *, timeout: float) -> dict[str, str]:
    """Block until every named port is there.

    Args:
        names: The names to wait for.
        timeout: Seconds until it is given up.

    Returns:
        Every port with a name, as ``find_ports`` does.

    Raises:
        PortsMissingError: Naming what is missing and what is there.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _KOBJECT_UEVENT) as events:
        events.bind((0, 1))  # Before the first look, so that no event falls between.
        while True:
            found = find_ports()
            missing = sorted(set(names) - found.keys())
            if not missing:
                return found
            remaining = deadline - time.monotonic()
            try:
                if remaining <= 0:
                    raise TimeoutError
                events.settimeout(remaining)
                events.recv(_UEVENT_BYTES)
            except TimeoutError:
                raise PortsMissingError(
                    f"no virtio-serial port named {', '.join(missing)} within {timeout:g} s;"
                    f" there are: {', '.join(sorted(found)) or 'none'}"
                ) from None


def open_port(device: str) -> int:
    """Open a port for both directions, non-blocking, and return its descriptor."""
    path = f"/dev/{device}"
    if not os.path.exists(path):  # A kernel whose /dev is not kept by devtmpfs.
        with open(f"{_CLASS_DIRECTORY}/{device}/dev", encoding="ascii") as file:
            major, minor = file.read().split(":")
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
