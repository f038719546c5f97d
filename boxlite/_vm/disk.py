"""The disk for what a box changes in its image: a sparse file with an empty ext4 on it.

The journal makes a file system whole again after its machine was killed; it is small,
because what a box writes need not outlive the host's crash. Tables are initialised by
the guest as it uses them, so an empty disk of any size takes a few MiB.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from boxlite._errors import HostError
from boxlite._program import ask

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS: Final = 60.0
#: Debian has it where only root's PATH leads.
_SEARCH_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin"
_JOURNAL_MIB: Final = 16
_OPTIONS: Final = (
    *("-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", f"size={_JOURNAL_MIB}"),
    *("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
)


async def make_disk(path: Path, *, gib: int) -> None:
    """Make a disk. Cancelled or failing, it may leave the file, and nothing else.

    Args:
        path: Where; nothing is there yet.
        gib: Its size.

    Raises:
        HostError: There is no ``mke2fs``, no room, or no file that large.
    """
    program = find_mke2fs()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, gib << 30)
        finally:
            os.close(fd)
        answer = await ask([program, *_OPTIONS, str(path)], seconds=_SECONDS)
    except OSError as exc:
        raise HostError(
            f"the disk {path} of {gib} GiB cannot be made: {exc.strerror}",
            fix="Give the box a smaller disk_size_gib, or the home another file system.",
        ) from exc
    if answer.exit_code != 0:
        ended = f"exited with {answer.exit_code}"
        if answer.exit_code is None:
            ended = f"was not done after {_SECONDS:g} s"
        words = answer.last_words or f"{program} {ended}"
        raise HostError(
            f"the disk {path} cannot be made: {words}", fix="Check the space and the rights there."
        )


def grow_disk(path: Path, *, gib: int) -> None:
    """Make a disk larger, if it is smaller; the guest makes its file system fit.

    Args:
        path: The disk; no machine has it.
        gib: The size that it is to have.

    Raises:
        HostError: It cannot have it.
    """
    try:
        if path.stat().st_size < gib << 30:
            os.truncate(path, gib << 30)
    except OSError as exc:
        raise HostError(
            f"the disk {path} cannot be made {gib} GiB large: {exc.strerror}",
            fix="Give the box a smaller disk_size_gib, or the home another file system.",
        ) from exc


def find_mke2fs() -> str:
    """Return the program that makes file systems.

    Raises:
        HostError: There is none.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:{_SEARCH_PATH}"
    if (program := shutil.which("mke2fs", path=path)) is None:
        raise HostError(
            "there is no mke2fs, which makes the disk of a box with an image",
            fix="Install it: apt-get install e2fsprogs",
        )
    return program
