"""``boxlite pull``, and what ``run`` and ``shell`` do before they start a box of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console

import boxlite

from .image_progress import image_progress

if TYPE_CHECKING:
    from collections.abc import Sequence


async def pull(
    options: boxlite.RuntimeOptions,
    *,
    image: str,
    platform: str | None,
    insecure: Sequence[str],
    quiet: bool,
) -> int:
    """Get an image from its registry and print its digest."""
    console = Console(stderr=True, quiet=quiet)
    registries = boxlite.RegistryOptions(insecure=frozenset(insecure))
    async with boxlite.open_runtime(options, registries=registries) as runtime:
        with image_progress(console, f"pulling {image}") as on_progress:
            pulled = await runtime.images.pull(image, platform=platform, on_progress=on_progress)
    click.echo(pulled.digest)
    return 0


async def ready_image(runtime: boxlite.Runtime, name: str) -> boxlite.Image:
    """Return an image that the home has, or pull it, which is shown if that is at a terminal.

    Args:
        runtime: The owner of the home.
        name: A reference, or the digest of an image that the home has.

    Raises:
        InvalidOptionError: It is neither.
        ImageError: It cannot be had, or is not taken; of the class that says why.
        HostError: It cannot be kept.
    """
    try:
        return await runtime.images.get(name)
    except boxlite.ImageNotFoundError:
        pass
    console = Console(stderr=True)
    # Elsewhere, what is on standard error is the command's alone.
    console.quiet = not console.is_interactive
    with image_progress(console, f"pulling {name}") as on_progress:
        return await runtime.images.pull(name, on_progress=on_progress)
