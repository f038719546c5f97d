"""Applying layers to a root file system in memory, as ``umoci unpack`` does on a disk.

Sources: the OCI image specification 1.1, "Image Layer Filesystem Changeset"; where it
leaves room, umoci 0.4.7:

* a whiteout removes what lower layers have, never what its own layer has, whichever of
  them comes first; what it names need not exist;
* a directory over a directory changes its attributes and keeps what is in it; anything
  else replaces what is there, and all that is in it;
* a path may lead through symbolic links of lower layers, which are followed inside of
  the root; the last component is never followed;
* a hard link may be to anything but a directory, also in a lower layer;
* a directory keeps its time when something in it changes;
* directories that no layer has are made: 0755, of root, and with the time 0, where umoci
  has the time at which it made them.

It differs from umoci in three things. A whiteout of an empty name, ``.`` or ``..``,
which umoci lets remove the directory it is in or the one above, is refused. What is below
a directory of AUFS's own (``.wh..wh.NAME``) is left out, as containerd does. Attributes
that squashfs or Linux cannot keep are left out instead of failing: see :func:`kept_xattrs`.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from .layer_limits import Budget, LayerError, Limits
from .layer_member import Kind, Member
from .layer_tar import LayerReader
from .root_tree import (
    Directory,
    File,
    Node,
    Special,
    Symlink,
    Way,
    Xattrs,
    check_component,
    clean,
    follow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
_TYPES: Final = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}
_XATTR_NAME_BYTES: Final = 255


class RootLayers:
    """A root file system that layers are applied to, the lowest first.

    Args:
        limits: How large it may become.
        checkpoint: Called before each member. What it raises ends the work.

    Attributes:
        root: What has come of it. Before any layer it is empty: 0755, of root, time 0.
    """

    def __init__(self, limits: Limits, checkpoint: Callable[[], object] = lambda: None) -> None:
        self.root = Directory(0o755, 0, 0, 0)
        self._limits = limits
        self._checkpoint = checkpoint
        self._entries = Budget(limits.entries, "entries")
        self._bytes = Budget(limits.image_bytes, "bytes of files")
        self._metadata = Budget(limits.metadata_bytes, "bytes of names and attributes")
        self._touched: list[Directory] = []
        self._layer = 0

    def apply_file(self, fd: int) -> None:
        """Apply the next layer: an open file with a tar, which must stay open.

        Raises:
            LayerError: It is refused. The root file system is not to be used.
            OSError: It cannot be read.
        """
        self.apply(LayerReader(fd, self._limits, self._metadata).members())

    def apply(self, members: Iterable[Member]) -> None:
        """Apply the next layer, given as its members. Otherwise like :meth:`apply_file`."""
        for member in members:
            self._checkpoint()
            self._entries.take(1, member.name)
            self._apply(member)
        for directory in self._touched:
            directory.touched = None
        self._touched.clear()
        self._layer += 1

    def _apply(self, member: Member) -> None:
        parts = clean(member.name)
        if not parts:
            if member.kind is not Kind.DIRECTORY:
                raise LayerError(member.name, "it is the root, and no directory")
            _set_attributes(self.root, member)
            return
        *above, name = parts
        if any(part.startswith(_AUFS) for part in above):
            return
        way = follow(self.root, above, member.name)
        if name.startswith(_WHITEOUT):
            self._white_out(way, name, member)
            return
        check_component(name, member.name)
        length = sum(len(part) + 1 for part, _ in way) + len(name)
        if length > self._limits.path_bytes:
            raise LayerError(member.name, f"its path has {length} bytes, which is too long")
        parent = _make_directories(way, member)
        existing = parent.children.get(name)
        if isinstance(existing, Directory) and member.kind is Kind.DIRECTORY:
            _set_attributes(existing, member)
        else:
            # Before a link is followed: one to itself is then a link to nothing.
            parent.children.pop(name, None)
            parent.children[name] = self._make(member)
        self._touch(way, name)

    def _make(self, member: Member) -> Node:
        mode, uid, gid, mtime = member.mode, member.uid, member.gid, member.mtime
        if member.kind is Kind.HARD_LINK:
            return self._find_linked(member)
        xattrs = kept_xattrs(member)
        match member.kind:
            case Kind.FILE:
                self._bytes.take(member.size, member.name)
                return File(
                    mode,
                    uid,
                    gid,
                    mtime,
                    xattrs,
                    size=member.size,
                    layer=self._layer,
                    offset=member.offset,
                    segments=member.segments,
                )
            case Kind.DIRECTORY:
                return Directory(mode, uid, gid, mtime, xattrs)
            case Kind.SYMLINK:
                if not member.target or b"\0" in member.target:
                    raise LayerError(member.name, "it is a link to nothing that has a name")
                return Symlink(uid, gid, mtime, xattrs, target=member.target)
            case kind:
                return Special(_TYPES[kind] | mode, uid, gid, mtime, xattrs, device=member.device)

    def _find_linked(self, member: Member) -> Node:
        *above, name = clean(member.target) or [b"."]
        parent = follow(self.root, above, member.name)[-1][1]
        node = parent.children.get(name) if isinstance(parent, Directory) else None
        if node is None or isinstance(node, Directory):
            what = "a directory" if node or name == b"." else "what is not there"
            raise LayerError(member.name, f"it is a hard link to {what}")
        node.is_shared = True
        return node

    def _white_out(self, way: Way, name: bytes, member: Member) -> None:
        directory = way[-1][1]
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise LayerError(member.name, "it is a whiteout of what is no name")
        if not isinstance(directory, Directory):
            return
        if name == _OPAQUE:
            _purge(directory)
            return
        node = directory.children.get(hidden)
        if node is None:
            return
        if not directory.touched or hidden not in directory.touched:
            del directory.children[hidden]
        elif isinstance(node, Directory):
            _purge(node)

    def _touch(self, way: Way, name: bytes) -> None:
        """Note that the present layer has a path, and so every directory on it."""
        for part, node in reversed(way):
            assert isinstance(node, Directory)
            if node.touched is None:
                node.touched = set()
                self._touched.append(node)
            elif name in node.touched:
                return
            node.touched.add(name)
            name = part


def _purge(directory: Directory) -> None:
    """Remove what only lower layers have below a directory."""
    waiting = [directory]
    while waiting:
        directory = waiting.pop()
        touched = directory.touched or set()
        kept = {name: node for name, node in directory.children.items() if name in touched}
        waiting += [node for node in kept.values() if isinstance(node, Directory)]
        directory.children = kept


def _make_directories(way: Way, member: Member) -> Directory:
    """Make those directories on a way that are not there; return the last one."""
    here: Directory | None = None
    for index, (name, node) in enumerate(way):
        if node is None and here is not None:
            # As mkdir(2) does where directories hand their group down.
            handed_down = here.mode & stat.S_ISGID
            node = Directory(0o755 | handed_down, 0, here.gid if handed_down else 0, 0)
            here.children[name] = node
            way[index] = (name, node)
        if not isinstance(node, Directory):
            raise LayerError(member.name, "something on the way to it is no directory")
        here = node
    assert here is not None
    return here


def _set_attributes(directory: Directory, member: Member) -> None:
    directory.mode = stat.S_IFDIR | member.mode
    directory.uid, directory.gid = member.uid, member.gid
    directory.mtime = member.mtime
    directory.xattrs = kept_xattrs(member)


def kept_xattrs(member: Member) -> Xattrs:
    """Return those extended attributes of a member that its file in the root will have.

    squashfs has those whose names begin with ``user.``, ``trusted.`` and ``security.``, so
    no ACLs (``system.posix_acl_access``). Left out are also ``user.`` where Linux has none
    (on links, devices and fifos), the labels of SELinux, which are of the machine that
    built the image, and what overlayfs takes for its own, because the root is one of its
    layers and could hide or redirect others.
    """
    return tuple(
        (name, value)
        for name, value in member.xattrs
        if name.startswith((b"user.", b"trusted.", b"security."))
        and len(name) <= _XATTR_NAME_BYTES
        and not name.startswith(b"trusted.overlay.")
        and name != b"security.selinux"
        and (member.kind in (Kind.FILE, Kind.DIRECTORY) or not name.startswith(b"user."))
    )
