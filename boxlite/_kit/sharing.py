"""The kernel of boxes that have volumes: one with 9P, which Debian's for clouds is without."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from boxlite._errors import HostError

from .download import SHARING_META_PACKAGES, fetch_kernel
from .initramfs import VOLUME_MODULES
from .kernel import KERNEL_VARIABLE
from .kmod import index_modules, missing_modules

if TYPE_CHECKING:
    from pathlib import Path

    from boxlite._layout import HomeLayout

    from .kernel import Kernel


def can_share(kernel: Kernel) -> bool:
    """Tell whether a kernel has what volumes need. Looks at the files of its modules."""
    return not missing_modules(VOLUME_MODULES, index_modules(kernel.modules), kernel.modules)


async def sharing_kernel(found: Kernel | None, named: Path | None, home: HomeLayout) -> Kernel:
    """Return a kernel for a box with volumes: the ordinary one, or one downloaded for it.

    Args:
        found: The kernel of boxes without volumes, if there is one.
        named: The kernel that the runtime's options name: then it is that or none.
        home: The home that keeps downloaded kernels.

    Raises:
        HostError: The kernel that was named will not do, or none can be had.
    """
    if found is not None:
        if await trio.to_thread.run_sync(can_share, found):
            return found
        if named is not None or os.environ.get(KERNEL_VARIABLE):
            raise HostError(
                f"the kernel {found.image} cannot have volumes: it has no 9P",
                fix="Name one with the modules 9p and 9pnet_virtio, or none.",
            )
    return await fetch_kernel(home, can_share, packages=SHARING_META_PACKAGES)
