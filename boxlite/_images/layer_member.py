"""What a member of a layer is."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .layer_extended import Segments


class Kind(enum.Enum):
    """What a member is."""

    FILE = enum.auto()
    HARD_LINK = enum.auto()
    SYMLINK = enum.auto()
    CHARACTER_DEVICE = enum.auto()
    BLOCK_DEVICE = enum.auto()
    DIRECTORY = enum.auto()
    FIFO = enum.auto()


class Member(NamedTuple):
    """One member of a layer.

    Attributes:
        name: Its path, as the layer has it.
        kind: What it is.
        mode: Its permissions.
        uid: Its owner.
        gid: Its owner's group.
        mtime: When its content changed, in whole seconds since 1970; may be negative.
        target: Where a symbolic link leads; the name of the member that is linked to.
        device: Major and minor number.
        xattrs: Its extended attributes, sorted by name.
        size: Bytes of a file, holes included.
        offset: Where the data of a file begins in the layer.
        segments: Where that data belongs in a file with holes.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    size: int = 0
    offset: int = 0
    segments: Segments | None = None
