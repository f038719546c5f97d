"""The stages that give a box what is behind its disks and volumes, and its guest word of them."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from boxlite._errors import HostError, ImageError
from boxlite._options import BUILTIN_IMAGE
from boxlite._rlimits import rlimit_numbers
from boxlite._sparse import copy_sparse
from boxlite._vm.devices import DeviceFiles
from boxlite._vm.disk import grow_disk, make_disk
from boxlite._wire import VOLUME_TAG

from .volumes import file_name, open_volumes, share_volumes

if TYPE_CHECKING:
    from pathlib import Path

    from .startup import Startup


#: What of it goes into a line to the guest, which has 4,096.
_DIRECTORY_BYTES: Final = 2048


async def find_image(start: Startup) -> None:
    """Get the image: from the home, or pulled and made ready now."""
    if start.options.image == BUILTIN_IMAGE:
        await trio.lowlevel.checkpoint()
        return
    if start.image is None:
        start.image = await start.groundwork.image(start.options.image)
    else:
        # The very image that it was made of, whatever has that name by now.
        await trio.lowlevel.checkpoint()
    start.undo.enter_context(start.groundwork.using(start.image))


async def open_devices(start: Startup) -> None:
    """Make the box's own disk, and open what is behind its devices."""
    files = start.undo.enter_context(ExitStack())
    try:
        if start.image is not None:
            await _provide_disk(start)
            start.devices = open_disks(start, start.layout.disk)
        shared = share_volumes(start.volumes, start.layout.volumes, files)
        start.devices = attrs.evolve(start.devices, volumes=shared)
        await trio.lowlevel.checkpoint()
    except OSError as exc:
        raise HostError(
            f"the disk of the box, {exc.filename or start.layout.disk}, cannot be made or opened:"
            f" {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc


async def _provide_disk(start: Startup) -> None:
    """Make the disk: as it is in the template, or empty; or make the one that is there fit."""
    disk, gib = start.layout.disk, start.options.disk_size_gib
    if disk.exists():
        grow_disk(disk, gib=gib)
    elif start.template is not None and start.template.disk_fd is not None:
        fd = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Some MiB within the page cache: a thread would take as long.
            copy_sparse(start.template.disk_fd, fd)
        finally:
            os.close(fd)
    else:
        await make_disk(disk, gib=gib)


def open_disks(start: Startup, disk: Path) -> DeviceFiles:
    """Open what is behind the disks of a machine with an image.

    Args:
        start: The box; closes them in the end.
        disk: What is changed in its image.

    Raises:
        ImageError: The image's root file system is gone.
        OSError: The disk is.
    """
    files = start.undo.enter_context(ExitStack())
    image = _open_image(start, files)
    changes = os.open(disk, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    files.callback(os.close, changes)
    return DeviceFiles(image=image, changes=changes)


def _open_image(start: Startup, files: ExitStack) -> int:
    assert start.image is not None
    try:
        fd = os.open(start.image.root, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise ImageError(
            start.image.name, f"its root file system is gone: {exc.strerror}", fix="Try again."
        ) from exc
    files.callback(os.close, fd)
    return fd


def open_sources(start: Startup) -> None:
    """Open what volumes share, before anything is made."""
    start.volumes = open_volumes(start.options.volumes, start.undo.enter_context(ExitStack()))


def order_to_prepare(start: Startup) -> str:
    """Return the working directory that the guest of a template makes: empty if it is too long."""
    assert start.image is not None
    directory = start.image.config.working_dir
    return directory if len(json.dumps(directory)) <= _DIRECTORY_BYTES else ""


async def set_up_guest(start: Startup) -> None:
    """Tell the guest of its disks, volumes and limits, if there is anything that it does not know.

    What its template knows needs no word: the first call to a guest that was restored takes
    as long as everything else of its start.
    """
    options = start.options
    prepared = start.template is not None and start.template.disk_fd is not None
    known = start.image is None or (prepared and order_to_prepare(start))
    if known and not start.volumes and not options.rlimits:
        await trio.lowlevel.checkpoint()
        return
    await start.session.set_up(
        working_directory=None if start.image is None else start.image.config.working_dir,
        volumes=[
            (
                VOLUME_TAG.format(index=index),
                each.volume,
                file_name(each.volume) if each.is_file else "",
            )
            for index, each in enumerate(start.volumes)
        ],
        limits=rlimit_numbers(options.rlimits),
    )
