"""Kernel modules, in the groups in which they are wanted.

The drivers of devices that differ from box to box are not in a template: a driver
that is loaded after the restore sees the box's own disks, and not the template's.
"""

from __future__ import annotations

from typing import Final

from . import kernel

MODULES_DIRECTORY: Final = "/usr/lib/boxlite/modules"

#: What the agent itself needs, and file systems that more boxes than one can wait for.
BOOT: Final = "boot"
#: Of disks.
DISKS: Final = "disks"
#: Of volumes.
VOLUMES: Final = "volumes"


def load(group: str) -> None:
    """Load a group's modules; those that are there already, or built in, are no matter.

    Raises:
        OSError: One of them cannot be loaded.
    """
    try:
        with open(f"{MODULES_DIRECTORY}/{group}.order", encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError:
        return  # A kernel with everything built in.
    for name in names:
        try:
            kernel.load_module(f"{MODULES_DIRECTORY}/{name}")
        except FileExistsError:
            continue
