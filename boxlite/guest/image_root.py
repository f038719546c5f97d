"""An image's root file system, and what programs in it expect to find around them.

The image is a squashfs, which nobody can write to; what commands change is on a disk
of the box's own; an overlay joins the two. Around that are the mounts and nodes of
the OCI runtime specification's Linux part ("Default Filesystems", "Default Devices").

Everything is put where the image's paths lead, with the image's own links in them. So
it is done from within: the overlay becomes the root of the commands' mount namespace
first, and no link of the image can lead out of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from boxlite._wire import CHANGES_DISK, IMAGE_DISK

from . import kernel
from .kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT
from .nodes import make_nodes

if TYPE_CHECKING:
    from .namespaces import Namespaces

_WORKSHOP: Final = "/run/boxlite"
#: Where the root is until it is the root: in no mount of the machine's.
_ROOT: Final = "/mnt"
_STRICT: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
#: What would let a command change the machine instead of the box. A container's list.
_READ_ONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
#: A container's 64 MiB; the box's memory is the limit that counts.
_SHM_OPTIONS: Final = "mode=1777,size=64m"

_NAMES: Final = ("hostname", "hosts", "resolv.conf")
_RESOLVER: Final = "# This box has no network.\n"
#: Where those files are for the moment in which they are mounted.
_PASSAGE: Final = "/dev/.names"

#: _IOW('f', 16, __u64) of fs/ext4/ext4.h.
_EXT4_IOC_RESIZE_FS: Final = 0x40086610
#: Where ext4's superblock says how many blocks there are, and how large they are.
_SUPERBLOCK: Final = 1024
_BLOCKS_LOW: Final = 4
_BLOCK_SIZE_LOG: Final = 24
_BLOCKS_HIGH: Final = 336


def mount_image(namespaces: Namespaces) -> int:
    """Make an image the root of the commands' mount namespace. Called from in there.

    Nothing of it belongs to one box more than to another with the same image.

    Args:
        namespaces: Of the commands.

    Returns:
        The size of the file system that takes changes, in bytes.

    Raises:
        OSError: Something cannot be mounted; its file name says what.
    """
    for name in ("image", "changes"):
        os.makedirs(f"{_WORKSHOP}/{name}", exist_ok=True)
    kernel.mount(_disk(IMAGE_DISK), f"{_WORKSHOP}/image", "squashfs", MS_RDONLY | MS_NODEV)
    size = _mount_changes(_disk(CHANGES_DISK), f"{_WORKSHOP}/changes")
    layers = f"lowerdir={_WORKSHOP}/image"
    layers += f",upperdir={_WORKSHOP}/changes/upper,workdir={_WORKSHOP}/changes/work"
    # Nodes that the image has, or that a command makes, open no device of the machine.
    kernel.mount("overlay", _ROOT, "overlay", MS_NODEV, layers)
    _require_directory(f"{_ROOT}/proc")
    namespaces.mount_proc(_ROOT, _STRICT)
    os.chdir(_ROOT)
    # Beneath the root, out of sight, a /proc without anything covered would let a user
    # namespace mount such a one again.
    for machine in ("/proc", "/sys", "/dev", "/tmp", "/run"):  # noqa: S108 - a mount
        kernel.unmount(machine)
    # The root of an initramfs cannot be pivoted away; this hides it as well.
    kernel.mount(".", "/", "", kernel.MS_MOVE)
    os.chroot(".")
    namespaces.enter_root()
    _furnish()
    _provide_names()
    return size


def _disk(serial: str) -> str:
    for name in sorted(os.listdir("/sys/block")):
        with suppress(OSError), open(f"/sys/block/{name}/serial", encoding="ascii") as file:
            if file.read().strip() == serial:
                return f"/dev/{name}"
    raise FileNotFoundError(errno.ENOENT, "there is no such disk", serial)


def _mount_changes(disk: str, target: str) -> int:
    kernel.mount(disk, target, "ext4", MS_NOSUID | MS_NODEV | kernel.MS_NOATIME)
    for name in ("upper", "work"):
        with suppress(FileExistsError):
            os.mkdir(f"{target}/{name}", 0o755)
    return _grow(disk, target)


def _grow(disk: str, target: str) -> int:
    """Make the file system as large as its disk, if the disk has grown."""
    fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        superblock = os.pread(fd, 1024, _SUPERBLOCK)
    finally:
        os.close(fd)
    (low,) = struct.unpack_from("<I", superblock, _BLOCKS_LOW)
    (high,) = struct.unpack_from("<I", superblock, _BLOCKS_HIGH)
    block = 1024 << struct.unpack_from("<I", superblock, _BLOCK_SIZE_LOG)[0]
    if size // block > (high << 32 | low):
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(directory, _EXT4_IOC_RESIZE_FS, struct.pack("<Q", size // block))
        finally:
            os.close(directory)
    return size


def _require_directory(path: str) -> None:
    """Have a directory, and no link, at a path that process 1 is going to mount on."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o755)
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "the image has something else there", path)


def _furnish() -> None:
    """Mount what is not the image's. The root is the image's by now."""
    for directory in ("/dev", "/sys", "/etc", "/tmp"):  # noqa: S108 - the image's own
        with suppress(FileExistsError):
            os.mkdir(directory, 0o755)
            if directory == "/tmp":  # noqa: S108
                os.chmod(directory, 0o1777)  # noqa: S103 - as everybody expects it
    kernel.mount("sysfs", "/sys", "sysfs", _STRICT | MS_RDONLY)
    with suppress(OSError):  # Optional, as it is for the machine.
        kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _STRICT | MS_RDONLY)
    kernel.mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k")
    for directory in ("/dev/pts", "/dev/shm", "/dev/mqueue"):  # noqa: S108
        os.mkdir(directory)
    pts = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    kernel.mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, pts)
    kernel.mount("shm", "/dev/shm", "tmpfs", _STRICT, _SHM_OPTIONS)  # noqa: S108
    with suppress(OSError):  # A kernel may be without.
        kernel.mount("mqueue", "/dev/mqueue", "mqueue", _STRICT)
    os.symlink("pts/ptmx", "/dev/ptmx")
    make_nodes(machine=False)
    for name in _READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            kernel.mount(path, path, "", MS_BIND)
            kernel.mount(path, path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | _STRICT)


def _provide_names() -> None:
    """Mount files of the box's own over those in /etc that a container's runtime writes."""
    os.mkdir(_PASSAGE, 0o700)
    kernel.mount("tmpfs", _PASSAGE, "tmpfs", _STRICT, "mode=755,size=64k")
    for name in _NAMES:
        target = f"/etc/{name}"
        if not os.path.isfile(target):
            with suppress(FileNotFoundError):
                os.unlink(target)
            _create(target)
        _create(f"{_PASSAGE}/{name}")
        kernel.mount(f"{_PASSAGE}/{name}", target, "", MS_BIND)
    kernel.unmount(_PASSAGE)
    os.rmdir(_PASSAGE)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def write_names(hostname: str) -> None:
    """Tell programs the machine's name. Called from within the image.

    Args:
        hostname: The name.

    Raises:
        OSError: The image has been changed since it was mounted.
    """
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n"
    for name, text in zip(_NAMES, (f"{hostname}\n", hosts, _RESOLVER), strict=True):
        with open(f"/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)
