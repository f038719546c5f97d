"""The guest kit, cached in the home: a kernel and the initramfs that goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import attrs
import trio

from boxlite._errors import HostError

from .initramfs import Recipe
from .workshop import last_words, open_workshop, run_program

if TYPE_CHECKING:
    from boxlite._layout import HomeLayout

    from .kernel import Kernel

#: Archives that a home keeps: for the interpreters and versions that take turns in it.
ARCHIVES_KEPT: Final = 4

# One build at a time per archive; entries go when nobody waits any more.
_builds: WeakValueDictionary[Path, trio.Lock] = WeakValueDictionary()


@attrs.frozen
class GuestKit:
    """What a VM boots.

    Args:
        kernel: The kernel.
        initramfs: The root file system.
        key: Names the contents of the initramfs.
    """

    kernel: Kernel
    initramfs: Path
    key: str


async def prepare_kit(home: HomeLayout, kernel: Kernel) -> GuestKit:
    """Return the guest kit, building the initramfs if the home does not have it.

    It is built in a process of its own, so the caller's loop goes on. Callers
    that want the same one wait for a single build. Cancelling kills the build
    and leaves nothing behind; what is published is complete.

    Args:
        home: The home with the cache.
        kernel: The kernel that the guest will run.

    Raises:
        HostError: This machine lacks something that goes into it, or the build failed.
    """
    recipe = await trio.to_thread.run_sync(Recipe.find, kernel.modules)
    key = await trio.to_thread.run_sync(recipe.key)
    path = home.kit / f"initramfs-{key}.cpio"
    lock = _builds.setdefault(path, trio.Lock())
    async with lock:
        if not _is_complete(path):
            await _build(home, kernel, path)
    return GuestKit(kernel, path, key)


def _is_complete(path: Path) -> bool:
    """Tell whether an archive is there, as long as the day it was published."""
    try:
        return path.stat().st_size == int(_size_file(path).read_text())
    except (OSError, ValueError):
        return False


def _size_file(path: Path) -> Path:
    return path.with_suffix(".size")


async def _build(home: HomeLayout, kernel: Kernel, path: Path) -> None:
    try:
        with open_workshop(home, "initramfs") as work:
            made = work / path.name
            await run_program(
                [sys.executable, "-P", "-m", "boxlite._kit.build", str(kernel.modules), str(made)],
                cwd=work,
                env={
                    # The key was made of what this process would import, so the
                    # builder must find the very same; -P keeps it from adding more.
                    "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
                    # What its programs leave when they are killed goes with the workshop.
                    "TMPDIR": str(work),
                },
            )
            _publish(made, path)
    except subprocess.CalledProcessError as exc:
        raise HostError(
            f"the guest's root file system cannot be built: {last_words(exc)}",
            fix="Run python -m boxlite doctor.",
        ) from exc
    except OSError as exc:
        raise HostError(
            f"the guest's root file system cannot be kept in {home.root}: {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc


def _publish(made: Path, path: Path) -> None:
    # In this order: an archive without its size counts as damaged.
    _size_file(path).write_text(str(made.stat().st_size))
    made.rename(path)
    _prune(path.parent)


def _prune(directory: Path) -> None:
    """Remove all but the newest archives: each is 30 MB, and each upgrade makes one."""
    archives = sorted(
        directory.glob("initramfs-*.cpio"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for path in archives[ARCHIVES_KEPT:]:
        # QEMU reads an archive once, when it starts, so a running box does not miss it.
        path.unlink()
        _size_file(path).unlink(missing_ok=True)
