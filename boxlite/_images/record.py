"""An image in the record of a box that outlives its program: what the box needs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from .config import ImageConfig
from .image import Image
from .platform import Platform

if TYPE_CHECKING:
    from pathlib import Path


def image_to_record(image: Image) -> dict[str, Any]:
    """Return an image as JSON has it, without the directory that its root is in."""
    return {**attrs.asdict(image), "root": image.root.name}


def image_from_record(record: dict[str, Any], roots: Path) -> Image:
    """Return the image that :func:`image_to_record` was given.

    Args:
        record: What was written down.
        roots: The directory of the home's roots.

    Raises:
        ValueError, TypeError, KeyError: It was written by another version.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record["config"].items()
    }
    if (platform := fields["platform"]) is not None:
        fields["platform"] = Platform(**platform)
    root = record["root"]
    if not isinstance(root, str) or "/" in root:
        raise ValueError(f"the root {root!r} is no name")
    return Image(**{**record, "config": ImageConfig(**fields), "root": roots / root})
