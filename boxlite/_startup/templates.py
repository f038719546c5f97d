"""The stage that finds a box's template, and how one is made.

A machine's template is a boot up to the point at which the agent waits. From it comes
that of an image on that machine: restored once, with the image mounted, and saved again,
which takes a tenth of the time of a boot. So mounting, half of what a box with an image
would have to do at its start, is done when its first box is started.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from boxlite._vm.disk import make_disk
from boxlite._vm.template import TemplateDraft

from .devices import open_disks, order_to_prepare
from .pipeline import Stage, StageLog, Together, run_stages
from .stages import make_box_directory, start_shim, wait_ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from boxlite._vm.template import Template

    from .startup import Startup


async def find_template(start: Startup) -> None:
    """Get the template of the box, made now if there is none; none if there are to be none."""
    if not start.runtime.templates:
        await trio.lowlevel.checkpoint()
    elif start.image is None or start.layout.disk.exists():
        # A disk with something on it fits no template: its guest mounts it itself.
        start.template = await _machine_template(start)
        start.undo.callback(start.template.close)
    else:
        start.template = await _image_template(start)
        start.undo.callback(start.template.close)


async def _machine_template(start: Startup) -> Template:
    async def make(shape: dict[str, str]) -> None:
        await _make(start, shape, base=None)

    return await start.groundwork.template(start.machine, make)


async def _image_template(start: Startup) -> Template:
    assert start.image is not None

    async def make(shape: dict[str, str]) -> None:
        base = await _machine_template(start)
        try:
            await _make(start, shape, base=base)
        finally:
            base.close()

    return await start.groundwork.template(
        start.machine,
        make,
        image={
            "image": start.image.root.name,
            "directory": order_to_prepare(start),
            "disk_gib": str(start.options.disk_size_gib),
        },
    )


async def _make(start: Startup, shape: dict[str, str], *, base: Template | None) -> None:
    """Bring a machine like this box's to where its agent waits, and save it as a template.

    It is a start of its own, with a directory of its own, which goes unless it
    failed. Failing, it leaves no template, whole or half.

    Args:
        start: The box that wants it.
        shape: What shapes the machine.
        base: What is restored, to have the image mounted in it; None to boot.
    """
    async with AsyncExitStack() as undo:
        draft = TemplateDraft(start.home, memory_mib=start.options.memory_mib)
        undo.callback(draft.close)
        box_id = f"template-{start.box_id}"
        # Its stages are part of one of the box's.
        making = attrs.evolve(
            start,
            box_id=box_id,
            nonce=secrets.token_hex(16),
            undo=undo,
            log=StageLog(box_id=box_id),
            # Nothing of a template is any box's own.
            options=attrs.evolve(start.options, detach=False, keep=False),
        )
        making.machine = start.machine
        making.draft = draft
        if base is not None:
            making.template = base
            making.image = start.image
            await trio.to_thread.run_sync(draft.begin_with, base)
            await make_disk(draft.disk, gib=start.options.disk_size_gib)
            making.devices = open_disks(making, draft.disk)
        await run_stages(TEMPLATE_START, making, making.log)
        # The memory is whole when QEMU, which writes to it, has ended.
        await making.shim.stop()
        await trio.to_thread.run_sync(draft.publish, shape)


#: How a template starts. Its announcement is that it has been saved.
TEMPLATE_START: Final[Sequence[Stage[Startup] | Together[Startup]]] = (
    Stage("layout", make_box_directory),
    Stage("shim", start_shim),
    Stage("guest_ready", wait_ready),
)
