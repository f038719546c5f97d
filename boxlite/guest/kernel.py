"""System calls that the standard library does not have.

Figures: include/uapi/linux/mount.h, sched.h, prctl.h, reboot.h and random.h of Linux.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000

_MNT_DETACH: Final = 2
_PR_CAPBSET_DROP: Final = 24

_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273}
_REBOOT_POWER_OFF: Final = 0x4321FEDC
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system.

    Raises:
        OSError: With the target as its file name.
    """
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(result, target)


def unmount(target: str) -> None:
    """Take a mount away from its place; what is open on it, or bound elsewhere, goes on.

    Raises:
        OSError: With the target as its file name.
    """
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), target)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; of a new PID namespace only children become members.

    Raises:
        OSError: It is not possible.
    """
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def set_namespace(fd: int, kind: int) -> None:
    """Enter a namespace. That of mounts sets root and working directory to its root.

    Args:
        fd: Of the namespace, from /proc/PID/ns.
        kind: Which one it must be, as one of the ``CLONE_`` numbers.

    Raises:
        OSError: It is not possible.
    """
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def drop_from_bounding_set(capability: int) -> bool:
    """Keep what this process executes from having a capability; false if there is none such."""
    none = ctypes.c_ulong(0)
    result = _libc.prctl(
        ctypes.c_int(_PR_CAPBSET_DROP), ctypes.c_ulong(capability), none, none, none
    )
    if result == -1 and ctypes.get_errno() == errno.EINVAL:
        return False
    _check(result, "PR_CAPBSET_DROP")
    return True


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
