"""Owning a home directory: by a lock of the kernel's, which ends with its process.

Whoever owns it first tidies what a program that was killed may have left there.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from ._errors import HostError, RuntimeInUseError
from ._layout import BoxLayout
from ._process import read_pid_file
from ._removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._layout import HomeLayout

#: Directories of failed boxes that a home keeps; they are small, but not nothing.
FAILURES_KEPT: Final = 20


@contextmanager
def owned(home: HomeLayout) -> Iterator[None]:
    """Own a home while the block runs.

    Raises:
        RuntimeInUseError: Another runtime, here or in another process, owns it.
        HostError: Its lock cannot be opened.
    """
    try:
        fd = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise HostError(
            f"the lock {home.lock} cannot be opened: {exc.strerror}", fix="Check its rights."
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeInUseError(home.root, _owner(fd)) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _owner(fd: int) -> int | None:
    with suppress(OSError, ValueError):
        return int(os.pread(fd, 32, 0))
    return None


def tidy(home: HomeLayout) -> None:
    """Empty tmp, and keep only the newest of the failed boxes' directories.

    A program that was killed leaves directories whose boxes are dead; one
    whose shim still lives, because it has yet to notice, is left alone. So is
    one that can be started again.
    """
    for entry in home.tmp.iterdir():
        _remove(entry)
    # Not what is no box; nor one whose disk is wanted, which can be started again.
    boxes = (path for path in home.boxes.iterdir() if path.is_dir() and not path.is_symlink())
    dead = [path for path in boxes if not (is_alive(BoxLayout(path)) or has_disk(BoxLayout(path)))]
    dead.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    for path in dead[FAILURES_KEPT:]:
        _remove(path)
    for path in dead[:FAILURES_KEPT]:
        # Of what is kept as evidence it explains nothing, and takes the most.
        with suppress(OSError):
            BoxLayout(path).disk.unlink()


def is_alive(layout: BoxLayout) -> bool:
    """Tell whether the shim of a box runs."""
    shim = read_pid_file(layout.shim_pid)
    return shim is not None and shim.is_alive()


def has_disk(layout: BoxLayout) -> bool:
    """Tell whether a box has a disk that is kept for it."""
    return layout.record.exists() and layout.disk.exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
