"""What the kernel leaves to PID 1: mounts, modules, nodes, limits, loopback."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import struct
from typing import Final, NamedTuple

from . import console, kernel, modules
from .nodes import make_nodes

_OPEN_FILES: Final = (65_536, 1 << 20)
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class _Mount(NamedTuple):
    source: str
    target: str
    kind: str
    flags: int
    data: str = ""
    required: bool = True


_STRICT: Final = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_MOUNTS: Final = (
    _Mount("proc", "/proc", "proc", _STRICT),
    _Mount("sysfs", "/sys", "sysfs", _STRICT),
    _Mount("devtmpfs", "/dev", "devtmpfs", kernel.MS_NOSUID, "mode=0755", required=False),
    _Mount(
        "devpts", "/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=620,ptmxmode=666"
    ),
    _Mount("tmpfs", "/dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777"),  # noqa: S108
    _Mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777"),  # noqa: S108
    _Mount("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755"),
    _Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _STRICT, required=False),
)


def prepare() -> None:
    """Bring the machine to the state that programs expect, modules included.

    Raises:
        OSError: What cannot be done without failed, with its path as the file name.
    """
    os.umask(0o022)
    _mount_all()
    make_nodes(machine=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    modules.load(modules.BOOT)
    _raise_loopback()


def _mount_all() -> None:
    for mount in _MOUNTS:
        try:
            # Below /sys the directories are the kernel's; elsewhere they may be ours to make.
            os.makedirs(mount.target, exist_ok=True)
            kernel.mount(mount.source, mount.target, mount.kind, mount.flags, mount.data)
        except OSError as error:
            if error.errno == errno.EBUSY:
                continue  # The kernel mounted it already.
            if mount.required:
                raise
            console.log(f"no {mount.kind} on {mount.target}: {error.strerror}")


def _raise_loopback() -> None:
    # struct ifreq: the name in 16 bytes, then the flags; 40 bytes in all.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))
