"""A root file system in memory: names and attributes, and where each file's data is.

Nothing of it exists on the host, so no name in it can be a path of the host's. It is
made to be small: an image may have a million files.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from .layer_limits import LayerError

if TYPE_CHECKING:
    from .layer_extended import Segments

Xattrs = tuple[tuple[bytes, bytes], ...]

#: Links that are followed on the way to a member, as in umoci. Linux follows 40.
LINKS_MAX: Final = 255
#: Components of such a way: without it a chain of links makes 255 times 2048 of them.
_STEPS_MAX: Final = 8192
#: NAME_MAX of Linux.
_COMPONENT_BYTES: Final = 255


class Node:
    """What is at a path; one with several hard links is at several.

    Attributes:
        mode: Its type and permissions.
        uid: Its owner.
        gid: Its owner's group.
        mtime: When its content changed, in seconds since 1970.
        xattrs: Its extended attributes, sorted by name.
        is_shared: It had more than one hard link at some time.
    """

    __slots__ = ("gid", "is_shared", "mode", "mtime", "uid", "xattrs")

    def __init__(self, mode: int, uid: int, gid: int, mtime: int, xattrs: Xattrs) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.xattrs = xattrs
        self.is_shared = False


class File(Node):
    """A file.

    Attributes:
        size: Its bytes, holes included.
        layer: The number of the layer that its data is in.
        offset: Where in it.
        segments: Where that data belongs in a file with holes.
    """

    __slots__ = ("layer", "offset", "segments", "size")

    def __init__(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        xattrs: Xattrs,
        *,
        size: int,
        layer: int,
        offset: int,
        segments: Segments | None,
    ) -> None:
        super().__init__(stat.S_IFREG | mode, uid, gid, mtime, xattrs)
        self.size = size
        self.layer = layer
        self.offset = offset
        self.segments = segments


class Symlink(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, uid: int, gid: int, mtime: int, xattrs: Xattrs, *, target: bytes) -> None:
        super().__init__(stat.S_IFLNK | 0o777, uid, gid, mtime, xattrs)
        self.target = target


class Special(Node):
    """A device or a fifo.

    Attributes:
        device: Major and minor number; of a fifo, zeros.
    """

    __slots__ = ("device",)

    def __init__(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        xattrs: Xattrs,
        *,
        device: tuple[int, int],
    ) -> None:
        super().__init__(mode, uid, gid, mtime, xattrs)
        self.device = device


class Directory(Node):
    """A directory.

    Attributes:
        children: What is in it.
        touched: The names in it that the present layer made or went through.
    """

    __slots__ = ("children", "touched")

    def __init__(self, mode: int, uid: int, gid: int, mtime: int, xattrs: Xattrs = ()) -> None:
        super().__init__(stat.S_IFDIR | mode, uid, gid, mtime, xattrs)
        self.children: dict[bytes, Node] = {}
        self.touched: set[bytes] | None = None


def count_bytes(root: Directory) -> int:
    """Return the bytes of all files in a tree, holes included, each file once."""
    total = 0
    shared: set[Node] = set()
    waiting: list[Node] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Directory):
            waiting += node.children.values()
        elif isinstance(node, File) and node not in shared:
            total += node.size
            if node.is_shared:
                shared.add(node)
    return total


def clean(path: bytes) -> list[bytes]:
    """Return the components of a path in an archive, seen from the root.

    ``..`` takes away the component before it and stops at the root, whatever links
    there are: as ``CleanPath`` of umoci does. So no path leads out.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


#: A way into the tree: each component, and what is there; None where nothing is.
Way = list[tuple[bytes, Node | None]]


def follow(root: Directory, parts: list[bytes], member: bytes) -> Way:
    """Follow a path into the tree, and every symbolic link on it, the last one too.

    The root is the root for absolute targets and the end for ``..``, as in a chroot.
    A path may go on where nothing is, as in umoci's SecureJoin: what comes then are
    names of what might be made.

    Args:
        root: The tree.
        parts: The components of the path.
        member: Whose way it is, for the error.

    Returns:
        The way, beginning with the root itself, under an empty name.

    Raises:
        LayerError: There are too many links, a name is too long, or contains a NUL.
    """
    way: Way = [(b"", root)]
    waiting = parts[::-1]
    links = steps = 0
    while waiting:
        part = waiting.pop()
        steps += 1
        if steps > _STEPS_MAX:
            raise LayerError(member, "the way to it is too long")
        if part in (b"", b"."):
            continue
        if part == b"..":
            if len(way) > 1:
                way.pop()
            continue
        here = way[-1][1]
        node = here.children.get(part) if isinstance(here, Directory) else None
        if isinstance(node, Symlink):
            links += 1
            if links > LINKS_MAX:
                raise LayerError(member, f"more than {LINKS_MAX} links are on the way to it")
            if node.target.startswith(b"/"):
                del way[1:]
            waiting += node.target.split(b"/")[::-1]
            continue
        check_component(part, member)
        way.append((part, node))
    return way


def check_component(name: bytes, member: bytes) -> None:
    """Check that Linux can have a name.

    Raises:
        LayerError: It cannot.
    """
    if len(name) > _COMPONENT_BYTES:
        raise LayerError(member, f"a name in it has more than {_COMPONENT_BYTES} bytes")
    if b"\0" in name:
        raise LayerError(member, "it has a NUL in its name")
