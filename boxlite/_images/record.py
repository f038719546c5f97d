"""An image in the record of a box that outlives its program: what the box needs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from .config import ImageConfig
from .image import Image
from .platform import Platform

if TYPE_CHECKING:
    from pathlib import Path

_NO_NAMES: Final = ("", ".", "..")
_NO_PART: Final = frozenset("/\0")


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
    config, root = record["config"], record["root"]
    if not isinstance(config, dict):
        raise TypeError("the configuration is no object")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    if (platform := fields["platform"]) is not None:
        fields["platform"] = Platform(**platform)
    if not isinstance(root, str) or root in _NO_NAMES or not _NO_PART.isdisjoint(root):
        raise ValueError(f"the root {str(root)[:100]!r} is no name")
    return Image(**{**record, "config": ImageConfig(**fields), "root": roots / root})
