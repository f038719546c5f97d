"""``boxlite images``: what a home has of images, shown and changed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import boxlite

from .amounts import age_text, byte_text
from .image_lines import short_digest
from .image_progress import image_progress
from .outcome import tell_error

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAILED: Final = 1
_UNCUT_COLUMNS: Final = 1000


async def show(options: boxlite.RuntimeOptions, *, as_json: bool) -> int:
    """Print the home's images."""
    async with boxlite.open_runtime(options) as runtime:
        images = await runtime.images.list()
    if as_json:
        _print_json([_summary(image) for image in images])
        return 0
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("NAME", "DIGEST"):
        table.add_column(title, no_wrap=True)
    for title in ("LAYERS", "ROOT", "AGE"):
        table.add_column(title, no_wrap=True, justify="right")
    now = time.time()
    for image in images:
        table.add_row(
            Text(image.name),
            short_digest(image.digest),
            byte_text(image.layers_bytes),
            byte_text(image.root_bytes),
            age_text(now - image.added_at),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        # Cut to 80 columns, a name that a script reads would be no name.
        console.width = _UNCUT_COLUMNS
    console.print(table)
    return 0


async def load(
    options: boxlite.RuntimeOptions,
    *,
    path: Path,
    name: str | None,
    platform: str | None,
    quiet: bool,
) -> int:
    """Take images from a file or a directory, and print what they are called."""
    console = Console(stderr=True, quiet=quiet)
    async with boxlite.open_runtime(options) as runtime:
        with image_progress(console, f"reading {path}") as on_progress:
            images = await runtime.images.load(
                path, name=name, platform=platform, on_progress=on_progress
            )
    for image in images:
        click.echo(f"{image.name} {image.digest}")
    return 0


async def remove(options: boxlite.RuntimeOptions, *, names: Sequence[str]) -> int:
    """Remove images; the exit code tells whether all of them could be."""
    code = 0
    async with boxlite.open_runtime(options) as runtime:
        for name in names:
            try:
                await runtime.images.remove(name)
            except (boxlite.ImageError, boxlite.InvalidOptionError, boxlite.StateError) as exc:
                tell_error(exc)
                code = _FAILED
    return code


async def prune(options: boxlite.RuntimeOptions, *, all_unused: bool) -> int:
    """Remove what nothing needs, and print what that was."""
    async with boxlite.open_runtime(options) as runtime:
        pruned = await runtime.images.prune(all=all_unused)
    for name in pruned.images:
        click.echo(name)
    click.echo(f"{byte_text(pruned.bytes)} freed", err=True)
    return 0


async def inspect(options: boxlite.RuntimeOptions, *, names: Sequence[str]) -> int:
    """Print everything about images; the exit code tells whether all of them are there."""
    found, code = [], 0
    async with boxlite.open_runtime(options) as runtime:
        for name in names:
            try:
                found.append(await runtime.images.get(name))
            except (boxlite.ImageError, boxlite.InvalidOptionError) as exc:
                tell_error(exc)
                code = _FAILED
    _print_json([attrs.asdict(image, value_serializer=_path_as_text) for image in found])
    return code


def _summary(image: boxlite.Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "digest": image.digest,
        "layers_bytes": image.layers_bytes,
        "root_bytes": image.root_bytes,
        "added_at": image.added_at,
    }


def _path_as_text(_owner: object, _field: object, value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _print_json(document: object) -> None:
    # In ASCII: what an image says of itself must not reach the terminal as it is.
    click.echo(json.dumps(document, indent=2))
