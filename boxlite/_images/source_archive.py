"""The files of an archive: a tar that is looked through once, and never extracted.

A file of it is a stretch of the tar. Names serve to look them up and nothing else, so
none of them reaches this machine's file system.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .layer_limits import Budget, LayerError, Limits
from .layer_member import Kind
from .layer_tar import LayerReader
from .source_piece import Piece, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layer_member import Member

#: An image has some three members per layer. Those of more are no archive of images.
MEMBERS_MAX: Final = 20_000

#: The names in archives of images have some 80 characters.
_NAME_BYTES_MAX: Final = 256
_LINKS_MAX: Final = 8
_CHECKED_EVERY: Final = 256
_LINKS: Final = (Kind.SYMLINK, Kind.HARD_LINK)
_LAYOUT: Final = b"oci-layout"
_INDEX: Final = b"index.json"
_DOCKER: Final = b"manifest.json"
_PIECE: Final = b"a piece"
_PIECE_NAME: Final = re.compile(rb"blobs/sha256/[0-9a-f]{64}|[0-9a-f]{64}/layer\.tar")


@attrs.frozen
class _Link:
    target: bytes


@attrs.frozen
class _Hollow:
    """A file with holes: no tool that writes images makes one."""


class ArchiveFiles:
    """The files of a tar.

    Args:
        fd: The tar, not compressed; the caller closes it after everything else.
        limits: How much it may have.

    Raises:
        LayerError: It is no tar, damaged, or over a limit.
        OSError: It cannot be read.
    """

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        self._index: dict[bytes, Piece | _Link | _Hollow] = {}
        self._marks: set[bytes] = set()
        self._fault = ""
        self.members = 0
        reader = LayerReader(fd, limits, Budget(limits.metadata_bytes, "bytes of names in it"))
        for member in reader.members():
            self.members += 1
            if self.members % _CHECKED_EVERY == 0:
                trio.from_thread.check_cancelled()
            if self.members > limits.entries:
                raise LayerError(b"", f"it has more than {limits.entries} members")
            self._add(member)

    @property
    def is_layout(self) -> bool:
        """Whether it has an OCI layout in it."""
        return _LAYOUT in self._marks or {_INDEX, _DOCKER} <= self._marks

    @property
    def is_docker(self) -> bool:
        """Whether ``docker save`` may have written it."""
        return _DOCKER in self._marks

    @property
    def is_fragment(self) -> bool:
        """Whether it has pieces of images, which are of no use without what lists them."""
        return _PIECE in self._marks

    def check(self) -> None:
        """Check what holds for archives of images, and need not for root file systems.

        Raises:
            SourceError: It has a member that none of them has.
        """
        if self._fault:
            raise SourceError(self._fault)

    def has(self, name: str) -> bool:
        """Tell whether there is a file of that name."""
        return name.encode() in self._index

    @contextmanager
    def open(self, name: str) -> Iterator[Piece]:
        """Give a file. Links are followed, in the archive.

        Args:
            name: Its name, whatever that is.

        Raises:
            SourceError: There is none.
        """
        yield self.find(name)

    def find(self, name: str) -> Piece:
        """Return a file. Arguments and errors as for :meth:`open`."""
        at = _tidy(name.encode())
        for _ in range(_LINKS_MAX):
            found = self._index.get(at) if at is not None else None
            match found:
                case Piece():
                    return found
                case _Link():
                    at = found.target
                case _Hollow():
                    raise SourceError(f"{name[:_NAME_BYTES_MAX]!r} in it has holes")
                case _:
                    raise SourceError(f"it has no {name[:_NAME_BYTES_MAX]!r}")
        raise SourceError(f"{name[:_NAME_BYTES_MAX]!r} in it is a link that leads to no file")

    def _add(self, member: Member) -> None:
        name = _tidy(member.name)
        shown = member.name[:_NAME_BYTES_MAX].decode(errors="backslashreplace")
        if name is None:
            self._blame(f"the name of {shown!r} in it leads out of it")
        elif member.kind is Kind.DIRECTORY:
            return
        elif member.kind is not Kind.FILE and member.kind not in _LINKS:
            self._blame(f"{shown!r} in it is a device or a pipe")
        elif name in self._index:
            self._blame(f"{shown!r} is in it twice")
        elif len(self._index) == MEMBERS_MAX:
            self._blame(f"it has more than {MEMBERS_MAX} files")
        elif len(name) <= _NAME_BYTES_MAX:
            self._put(name, member, shown)
        self._mark(name)

    def _put(self, name: bytes, member: Member, shown: str) -> None:
        if member.kind is Kind.FILE:
            hollow = member.segments is not None
            self._index[name] = _Hollow() if hollow else Piece(self._fd, member.offset, member.size)
            return
        target = member.target
        if member.kind is Kind.SYMLINK and not target.startswith(b"/"):
            target = name.rpartition(b"/")[0] + b"/" + target
            target = target.removeprefix(b"/")
        inside = _tidy(_fold(target))
        if inside is None:
            self._blame(f"the link {shown!r} in it leads out of it")
        elif len(inside) <= _NAME_BYTES_MAX:
            self._index[name] = _Link(inside)

    def _mark(self, name: bytes | None) -> None:
        # Also when there are too many to remember, so that it is known what is refused.
        if name in (_LAYOUT, _INDEX, _DOCKER):
            self._marks.add(name)
        elif name is not None and _PIECE_NAME.fullmatch(name):
            self._marks.add(_PIECE)

    def _blame(self, fault: str) -> None:
        self._fault = self._fault or fault


def _tidy(name: bytes) -> bytes | None:
    """Return a name without ``.`` and doubled slashes; None if it could lead out."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts:
        return None
    return b"/".join(parts)


def _fold(path: bytes) -> bytes:
    """Return the path of a link's target without the ``..`` that stay inside."""
    folded = [b""] if path.startswith(b"/") else []
    for part in path.split(b"/"):
        if part == b".." and folded and folded[-1] not in (b"", b".."):
            folded.pop()
        elif part not in (b"", b"."):
            folded.append(part)
    return b"/".join(folded)
