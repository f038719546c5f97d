"""What the kernel leaves to PID 1: mounts, modules, nodes, limits, loopback."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
from typing import Final, NamedTuple

from . import console, kernel

MODULES_DIRECTORY: Final = "/usr/lib/boxlite/modules"

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

# Character devices that programs take for granted: name, major, minor, mode.
_NODES: Final = (
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
    ("console", 5, 1, 0o600),
    ("ptmx", 5, 2, 0o666),
)
_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)


def prepare() -> None:
    """Bring the machine to the state that programs expect, modules included.

    Raises:
        OSError: What cannot be done without failed, with its path as the file name.
    """
    os.umask(0o022)
    _mount_all()
    _make_nodes()
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _load_modules()
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


def _make_nodes() -> None:
    for name, major, minor, mode in _NODES:
        path = f"/dev/{name}"
        if not os.path.exists(path):
            os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
            os.chmod(path, mode)  # The umask took bits away.
    for link, target in _LINKS:
        if not os.path.lexists(link):
            os.symlink(target, link)


def _load_modules() -> None:
    try:
        with open(f"{MODULES_DIRECTORY}/modules.order", encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError:
        return  # A kernel with everything built in.
    for name in names:
        try:
            kernel.load_module(f"{MODULES_DIRECTORY}/{name}")
        except FileExistsError:
            continue


def _raise_loopback() -> None:
    # struct ifreq: the name in 16 bytes, then the flags; 40 bytes in all.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))
