"""What the boxes of one runtime stand on: found or made once, and shared by all.

The first box of a runtime looks at the host, builds the guest kit and makes a
template; the boxes after it find that done. Whoever wants the same thing at the
same time waits for one of them to do it, and does it itself if that one fails or
is cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from boxlite._errors import HostError
from boxlite._host import examine_memory
from boxlite._kit import fetch_kernel, prepare_kit, sharing_kernel
from boxlite._preflight import Wanted, preflight
from boxlite._vm.template import open_template, prune_templates, remove_template

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager

    from boxlite._images.image import Image
    from boxlite._images.images import Images
    from boxlite._kit import GuestKit
    from boxlite._layout import HomeLayout
    from boxlite._options import RuntimeOptions
    from boxlite._preflight import Preflight
    from boxlite._vm.template import Template

    from .machine import Machine


class Groundwork:
    """The shared foundations of a runtime's boxes.

    Args:
        home: Where the runtime keeps things.
        runtime: What holds for all of its boxes.
        images: The home's images.
    """

    def __init__(self, home: HomeLayout, runtime: RuntimeOptions, images: Images) -> None:
        self._home = home
        self._runtime = runtime
        self._host: Preflight | None = None
        self._images = images
        self._kits: dict[bool, GuestKit] = {}
        self._locks: dict[object, trio.Lock] = {}

    async def host(self, *, memory_mib: int) -> Preflight:
        """Return QEMU, the accelerator and the kernel, after looking whether there is memory.

        Raises:
            HostError: This machine lacks something.
            InvalidOptionError: The home, QEMU or kernel that was given cannot be used.
        """
        async with self._lock("host"):
            if self._host is None:
                wanted = Wanted.by(self._runtime, memory_mib=memory_mib)
                self._host = await preflight(wanted)
            else:
                examine_memory(memory_mib)
            return self._host

    async def kit(self, host: Preflight, *, share: bool) -> GuestKit:
        """Return kernel and root, made now if the home does not have them.

        Args:
            host: What the boxes of the runtime run with.
            share: The box has volumes, which not every kernel can have.

        Raises:
            HostError: The kernel cannot be downloaded, or the root not be built.
        """
        async with self._lock("kit"):
            kit = self._kits.get(share)
            if kit is None or not kit.initramfs.exists():
                kernel = host.kernel
                if share:
                    kernel = await sharing_kernel(kernel, self._runtime.kernel, self._home)
                kernel = kernel or await fetch_kernel(self._home)
                kit = self._kits[share] = await prepare_kit(self._home, kernel)
            return kit

    async def image(self, name: str) -> Image:
        """Return an image that is ready, pulled now if the home does not have it.

        Raises:
            InvalidOptionError: It is no reference.
            ImageError: It cannot be had.
            HostError: It cannot be kept.
        """
        return await self._images.ready(name)

    def using(self, image: Image) -> AbstractContextManager[None]:
        """Keep an image from being removed while a block runs."""
        return self._images.using(image)

    async def template(
        self,
        machine: Machine,
        make: Callable[[dict[str, str]], Awaitable[None]],
        *,
        image: Mapping[str, str] | None = None,
    ) -> Template:
        """Return the template of a machine, or of an image on it.

        It is made now if the home does not have a sound one.

        It is opened and verified anew for each caller, who closes it.

        Args:
            machine: The machine.
            make: Makes and publishes the template of a machine of that shape.
            image: What tells the image that is mounted in it from others; None for none.

        Raises:
            HostError: The files cannot be written.
            BoxliteError: Whatever ``make`` raises.
        """
        wanted = image or {}
        lock = (machine.cpus, machine.memory_mib, machine.share, *wanted.values())
        async with self._lock(lock):
            try:
                # Some system calls and a hash of 300 KB: a thread would take longer.
                shape = {**machine.shape(), **wanted}
                if (found := open_template(self._home, shape)) is not None:
                    return found
                await make(shape)
                await trio.to_thread.run_sync(prune_templates, self._home)
                found = open_template(self._home, shape)
            except OSError as exc:
                raise HostError(
                    f"the templates in {self._home.templates} cannot be used: {exc}",
                    fix="Check the space and the rights there, or use templates=False.",
                ) from exc
            if found is None:
                raise HostError(
                    f"a template in {self._home.templates} changed as soon as it was made",
                    fix="Something else writes there; use another home, or templates=False.",
                )
            return found

    def discard_template(self, key: str) -> None:
        """Remove a template that did not work; the next box makes a new one.

        Raises:
            OSError: It cannot be removed.
        """
        remove_template(self._home, key)

    def _lock(self, what: object) -> trio.Lock:
        return self._locks.setdefault(what, trio.Lock())
