"""A root file system in memory as one tar without whiteouts, in an order of its own.

Directories come before what is in them, names in the order of their bytes, and the first
name of a file that has several carries its data: so the same root always gives the same
tar, whatever layers it came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from boxlite._tree.format import END, padding

from .layer_limits import LayerError
from .root_tree import Directory, File, Node, Special, Symlink
from .tar_header import HARD_LINK, encode_header

if TYPE_CHECKING:
    from collections.abc import Iterator

#: squashfs keeps seconds since 1970 in 32 bits.
TIME_MAX: Final = (1 << 32) - 1
#: squashfs numbers owners and groups in 16 bits, both in one table.
OWNERS_MAX: Final = (1 << 16) - 1


class Span(NamedTuple):
    """Some bytes of a layer.

    Attributes:
        layer: Its number.
        offset: Where in it.
        size: How many.
    """

    layer: int
    offset: int
    size: int


class Zeros(NamedTuple):
    """Some bytes that are zero.

    Attributes:
        size: How many.
    """

    size: int


class FlatTar:
    """The tar of a root file system.

    Args:
        root: The root file system. It must not change.

    Attributes:
        entries: The members that were given so far.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._first_names: dict[Node, bytes] = {}
        self._owners: set[int] = set()
        self.entries = 0

    def parts(self) -> Iterator[bytes | Span | Zeros]:
        """Yield the tar in parts, from its beginning to its end.

        Raises:
            LayerError: squashfs cannot have what is in it.
        """
        waiting: list[tuple[bytes, Node]] = [(b".", self._root)]
        while waiting:
            name, node = waiting.pop()
            self.entries += 1
            yield self._header(name, node)
            if isinstance(node, File) and self._first_names.get(node, name) == name:
                yield from _data(node)
            elif isinstance(node, Directory):
                start = b"" if node is self._root else name + b"/"
                children = node.children
                waiting += [
                    (start + each, children[each]) for each in sorted(children, reverse=True)
                ]
        yield END

    def _header(self, name: bytes, node: Node) -> bytes:
        self._owners.update((node.uid, node.gid))
        if len(self._owners) > OWNERS_MAX:
            raise LayerError(name, f"the image has more than {OWNERS_MAX} owners and groups")
        mtime = min(max(node.mtime, 0), TIME_MAX)
        flag, size, target, xattrs = b"", 0, b"", node.xattrs
        if node.is_shared:
            first = self._first_names.setdefault(node, name)
            if first != name:
                flag, target, xattrs = HARD_LINK, first, ()
        if not flag:
            match node:
                case File():
                    size = node.size
                case Symlink():
                    target = node.target
        return encode_header(
            name,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime=mtime,
            size=size,
            target=target,
            device=node.device if isinstance(node, Special) else (0, 0),
            xattrs=xattrs,
            flag=flag,
        )


def _data(file: File) -> Iterator[bytes | Span | Zeros]:
    at, offset = 0, file.offset
    for begin, size in ((0, file.size),) if file.segments is None else file.segments:
        if begin > at:
            yield Zeros(begin - at)
        if size:
            yield Span(file.layer, offset, size)
        at, offset = begin + size, offset + size
    if file.size > at:
        yield Zeros(file.size - at)
    if padding(file.size):
        yield bytes(padding(file.size))
