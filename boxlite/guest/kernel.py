"""System calls that the standard library does not have.

Figures: include/uapi/linux/mount.h, reboot.h and random.h of Linux.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Final

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8

_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273}
_REBOOT_POWER_OFF: Final = 0x4321FEDC
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """Mount a file system.

    Raises:
        OSError: With the target as its file name.
    """
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, target)


def load_module(path: str) -> None:
    """Load one kernel module that is not compressed.

    Raises:
        OSError: With the path as its file name; EEXIST when it is already there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = _FINIT_MODULE[os.uname().machine]
        result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(fd), b"", ctypes.c_int(0))
        _check(result, path)
    finally:
        os.close(fd)


def open_random() -> int:
    """Return a descriptor for :func:`add_entropy`."""
    return os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)


def add_entropy(random_fd: int, entropy: bytes) -> None:
    """Mix randomness into the kernel's pool, credit it, and draw new keys from the pool.

    A guest that was restored from a template shares its generator's state with
    every other box of that template until this has run.
    """
    request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
    fcntl.ioctl(random_fd, _RNDADDENTROPY, request)
    fcntl.ioctl(random_fd, _RNDRESEEDCRNG)


def power_off() -> None:
    """Flush file systems and switch the machine off; returns only when it fails."""
    os.sync()
    _check(_libc.reboot(ctypes.c_int(_REBOOT_POWER_OFF)), "reboot")
