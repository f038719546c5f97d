"""Volumes: what the host shares, mounted where commands are.

A volume that is read-only is so in its device, on the host; mounting it read-only as
well only has programs told so early.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from . import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from boxlite._rpc._generated.boxlite.v1 import VolumeMount

#: Larger messages would need longer runs of free memory than a small machine may have.
_OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=131072,cache=mmap"
_TAKEN: Final = ("/proc/", "/sys/", "/dev/")
#: Where a directory is for the moment in which a single file of it is mounted.
_PASSAGE: Final = "/dev/.volume"


def mount_volumes(volumes: Sequence[VolumeMount]) -> None:
    """Mount volumes in the current mount namespace, in order.

    Raises:
        OSError: One of them cannot be mounted; its file name says where.
    """
    for volume in volumes:
        if not volume.path.startswith(b"/") or b"\0" in volume.path:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), volume.path)
        target = os.fsdecode(volume.path)
        # Where links of the image lead, it must not be over the kernel's own.
        if f"{os.path.realpath(target)}/".startswith(_TAKEN):
            raise OSError(errno.EINVAL, "it leads to one of the kernel's own", volume.path)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        flags |= kernel.MS_RDONLY if volume.read_only else 0
        if volume.file:
            _mount_file(volume.tag, os.fsdecode(volume.file), target, flags)
        else:
            os.makedirs(target, exist_ok=True)
            kernel.mount(volume.tag, target, "9p", flags, _OPTIONS)


def _mount_file(tag: str, name: str, target: str, flags: int) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    os.mkdir(_PASSAGE, 0o700)
    try:
        kernel.mount(tag, _PASSAGE, "9p", flags, _OPTIONS)
        try:
            kernel.mount(f"{_PASSAGE}/{name}", target, "", kernel.MS_BIND)
        finally:
            kernel.unmount(_PASSAGE)
    finally:
        os.rmdir(_PASSAGE)
