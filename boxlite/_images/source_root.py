"""A root file system as an image: one layer, and a configuration that asks for nothing.

Neither says when it was made, so the digest of the image follows from its content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxlite._errors import InvalidOptionError

from .descriptor import Descriptor
from .source_manifest import LAYER_TYPES, canonical_json, store_made
from .source_piece import SourceError, reading

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from .media import Compression
    from .platform import Platform
    from .source_piece import Intake
    from .source_spool import Tar


def store_tar(tar: Tar, intake: Intake, platform: Platform) -> Descriptor:
    """Store a tar of a root file system as an image, and return its manifest. It blocks.

    The layer is the tar as it was given, also when it is compressed: except with xz, which
    layers are not.

    Args:
        tar: The tar.
        intake: Where to put it.
        platform: The machine that it is for, which it does not say itself.

    Raises:
        SourceError: It is too large, or changed meanwhile.
        UnreadableError: It cannot be read.
        OSError: It cannot be kept.
    """
    most = intake.limits.layer_bytes
    if tar.plain.size > most:
        raise SourceError(f"it has {tar.plain.size} bytes in it, more than {most}")
    kind: Compression = "none" if tar.compression == "xz" else tar.compression
    piece = tar.plain if kind == "none" else tar.source
    with intake.copy(piece) as (digest, path):
        intake.store.publish(digest, path)
    layer = Descriptor(media_type=LAYER_TYPES[kind], digest=digest, size=piece.size)
    return _store(intake, layer, digest if kind == "none" else tar.digest, platform)


def store_layer(layer: Descriptor, path: Path, intake: Intake, platform: Platform) -> Descriptor:
    """Store a layer with a root file system as an image, and return its manifest. It blocks.

    Args:
        layer: The layer, which is not compressed.
        path: Where it is, on the store's file system. Gone afterwards.
        intake: Where to put it.
        platform: The machine that it is for.

    Raises:
        OSError: It cannot be kept.
    """
    intake.store.publish(layer.digest, path)
    return _store(intake, layer, layer.digest, platform)


def check_apart(directory: Path, *ours: Path) -> None:
    """Check that a directory has nothing of ours in it, which would grow while it is read.

    Args:
        directory: The directory.
        *ours: Directories that are written to; one need not exist.

    Raises:
        InvalidOptionError: One is in it, and on its file system.
        UnreadableError: It cannot be read.
    """
    with reading():
        top, device = directory.resolve(strict=True), directory.stat().st_dev
    for path in ours:
        # What is mounted in it is left out.
        if path.resolve().is_relative_to(top) and (
            not path.exists() or path.stat().st_dev == device
        ):
            raise InvalidOptionError(
                "source", str(directory), f"a directory that does not hold {path}"
            )


def _store(intake: Intake, layer: Descriptor, diff_id: str, platform: Platform) -> Descriptor:
    config: dict[str, Any] = {
        "architecture": platform.architecture,
        "config": {},
        "os": platform.os,
        "rootfs": {"diff_ids": [diff_id], "type": "layers"},
    }
    if platform.variant:
        config["variant"] = platform.variant
    return store_made(intake, canonical_json(config), [layer])
