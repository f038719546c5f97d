"""Removing a directory, however deep somebody has made it."""

from __future__ import annotations

import os
import secrets
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def remove_tree(top: Path) -> None:
    """Remove a directory of ours with all that is in it. Follows no link.

    What lies deeper is moved up before it is removed: so neither the depth of the tree
    nor the length of its paths matters, and two descriptors are enough.

    Args:
        top: The directory. All of it is on one file system.

    Raises:
        OSError: It cannot be removed.
    """
    token = secrets.token_hex(8)
    numbers = count()
    while True:
        with os.scandir(top) as entries:
            first = next(entries, None)
        if first is None:
            top.rmdir()
            return
        if not first.is_dir(follow_symlinks=False):
            os.unlink(first.path)  # noqa: PTH108 - an entry has a path, and is none
            continue
        with os.scandir(first.path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    os.rename(entry.path, top / f"{token}-{next(numbers)}")  # noqa: PTH104
                else:
                    os.unlink(entry.path)  # noqa: PTH108
        os.rmdir(first.path)  # noqa: PTH106
