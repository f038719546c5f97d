"""``boxlite prepare`` and ``boxlite templates``: what boxes start from, before they are wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

import boxlite

from .progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from boxlite._options import BoxFields

_NOT_FOUND: Final = 1
_UNCUT_COLUMNS: Final = 200
#: Of the name of an image's root.
_DIGITS: Final = 12


async def build(options: boxlite.RuntimeOptions, box: BoxFields) -> int:
    """Have the template of such a box ready, showing what is being done."""
    console = Console(highlight=False, stderr=True)
    with progress(console) as on_stage:
        async with boxlite.open_runtime(options) as runtime:
            info = await runtime.prepare_template(on_stage=on_stage, **box)
    console.print(f"template {info.key}: {_shape(info)}, {_mib(info)}")
    return 0


async def show(options: boxlite.RuntimeOptions) -> int:
    """Print the home's templates."""
    async with boxlite.open_runtime(options) as runtime:
        templates = await runtime.templates()
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("TEMPLATE", "MACHINE", "DISK", "MADE", "LAST USED"):
        table.add_column(title, no_wrap=True)
    for info in templates:
        table.add_row(
            info.key, _shape(info), _mib(info), _moment(info.made_at), _moment(info.used_at)
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        # Cut to 80 columns, a key that a script reads would be no key.
        console.width = _UNCUT_COLUMNS
    console.print(table)
    return 0


async def remove(options: boxlite.RuntimeOptions, keys: Sequence[str]) -> int:
    """Remove templates; the exit code tells whether all of them were there."""
    console = Console(highlight=False, stderr=True)
    code = 0
    async with boxlite.open_runtime(options) as runtime:
        for key in keys:
            if not await runtime.remove_template(key):
                console.print(f"there is no template {key!r}")
                code = _NOT_FOUND
    return code


def _shape(info: boxlite.TemplateInfo) -> str:
    machine = info.machine
    cpus, memory = machine.get("cpus", "?"), machine.get("memory_mib", "?")
    image = f", image {machine['image'][:_DIGITS]}" if "image" in machine else ""
    return f"{memory} MiB, {cpus} CPU, {machine.get('accelerator', '?')}{image}"


def _mib(info: boxlite.TemplateInfo) -> str:
    return f"{info.disk_bytes >> 20} MiB"


def _moment(unix_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_seconds))
