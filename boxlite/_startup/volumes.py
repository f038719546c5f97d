"""Opening what a box is given of the host, as what its device shares: directories.

What is checked is what is shared: it is opened first and looked at through its
descriptor, and no path is used again.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._errors import HostError, InvalidOptionError
from boxlite._vm.devices import VolumeFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from boxlite._volume import Volume

#: Of the kind in which QEMU keeps what the guest sets; there for a moment only.
_TRIAL_ATTRIBUTE: Final = "user.virtfs.boxlite"


@attrs.frozen(kw_only=True)
class OpenVolume:
    """A volume whose source is open.

    Args:
        volume: What was asked for.
        fd: The directory or file.
        is_file: It is a single file.
    """

    volume: Volume
    fd: int
    is_file: bool


def open_volumes(volumes: Sequence[Volume], undo: ExitStack) -> list[OpenVolume]:
    """Open the sources of volumes, or say which of them cannot be one. Makes nothing.

    Args:
        volumes: What was asked for.
        undo: Closes them.

    Raises:
        InvalidOptionError: A source is not there, or cannot be what it is to be.
    """
    return [_open(f"volumes[{index}]", volume, undo) for index, volume in enumerate(volumes)]


def _open(field: str, volume: Volume, undo: ExitStack) -> OpenVolume:
    field = f"{field}.source"
    try:
        # A fifo must not be waited for.
        fd = os.open(volume.source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        allowed = f"a directory or file that this user can read ({exc.strerror})"
        raise InvalidOptionError(field, str(volume.source), allowed) from exc
    undo.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InvalidOptionError(field, str(volume.source), "a directory or a regular file")
    if not volume.read_only:
        _require_attributes(field, volume, fd)
    return OpenVolume(volume=volume, fd=fd, is_file=stat.S_ISREG(mode))


def _require_attributes(field: str, volume: Volume, fd: int) -> None:
    """Require that what the guest sets can be kept there."""
    try:
        os.setxattr(fd, _TRIAL_ATTRIBUTE, b"")
    except OSError as exc:
        allowed = f"one that this user may change, for a volume to write to ({exc.strerror})"
        if exc.errno == errno.ENOTSUP:
            allowed = "on a file system with extended attributes, for a volume to write to"
        raise InvalidOptionError(field, str(volume.source), allowed) from exc
    with suppress(OSError):
        os.removexattr(fd, _TRIAL_ATTRIBUTE)


def share_volumes(
    opened: Sequence[OpenVolume], directory: Path, undo: ExitStack
) -> list[VolumeFile]:
    """Return the directories to share: that of a single file has a link to it and nothing else.

    Args:
        opened: The volumes.
        directory: Where such directories are made.
        undo: Closes them. Removing them is the business of whoever removes the box.

    Raises:
        HostError: A file cannot be linked to.
    """
    shared = []
    for index, each in enumerate(opened):
        fd = each.fd
        if each.is_file:
            own = directory / str(index)
            fd = _directory_of(each, own, undo)
        shared.append(VolumeFile(fd=fd, read_only=each.volume.read_only))
    return shared


def _directory_of(each: OpenVolume, own: Path, undo: ExitStack) -> int:
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        link = own / file_name(each.volume)
        link.unlink(missing_ok=True)
        # The very file that was opened, whatever has its name by now (linkat(2)).
        # A directory descriptor makes it linkat(), which follows; link() would not.
        os.link(f"/proc/self/fd/{each.fd}", link, src_dir_fd=each.fd)
        fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        fix = "Share the directory that it is in."
        if exc.errno == errno.EXDEV:
            fix = f"It must be on the file system of {own.parent.parent}. {fix}"
        raise HostError(
            f"the file {each.volume.source} cannot be shared by itself: {exc.strerror}", fix=fix
        ) from exc
    undo.callback(os.close, fd)
    return fd


def file_name(volume: Volume) -> str:
    """Return the name of a single file in the directory that is made for it."""
    return PurePosixPath(volume.target).name
