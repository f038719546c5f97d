"""One file of a source of images: a stretch of an open file, and how it gets into the store.

Everything here blocks, and runs in a thread of Trio's: cancelled, it ends within 256 KiB
and leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .layer_spool import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Protocol

    from .blobs import BlobStore
    from .descriptor import Descriptor
    from .layer_limits import Limits

    class Files(Protocol):
        """The files of a source, by their names in it."""

        def has(self, name: str) -> bool:
            """Tell whether there is a file of that name, of whatever kind."""

        def open(self, name: str) -> AbstractContextManager[Piece]:
            """Give a file, which stays open while the block runs.

            Raises:
                SourceError: There is none of that name, or it is not a plain file.
                UnreadableError: It cannot be read.
            """


_PIECE_BYTES: Final = 256 << 10
_OUT_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class SourceError(Exception):
    """A source is refused. Its text says why: one sentence without a full stop."""


class UnreadableError(Exception):
    """A source cannot be read. Its text is the system's."""


@contextmanager
def reading() -> Iterator[None]:
    """Tell what fails in the block, which reads a source, from what fails in the store.

    Raises:
        UnreadableError: The block raised an OSError.
    """
    try:
        yield
    except OSError as exc:
        raise UnreadableError(exc.strerror or str(exc)) from exc


@attrs.frozen
class Piece:
    """A stretch of an open file.

    Args:
        fd: The file.
        offset: Where it begins.
        size: Its bytes.
    """

    fd: int
    offset: int
    size: int

    def read(self, limit: int, what: str) -> bytes:
        """Return all of it.

        Args:
            limit: The most bytes that it may have.
            what: What it is, for the error.

        Raises:
            SourceError: It has more, or became shorter.
            UnreadableError: It cannot be read.
        """
        if self.size > limit:
            raise SourceError(f"{what} has more than {limit} bytes")
        return b"".join(self.parts())

    def head(self, size: int) -> bytes:
        """Return its first bytes, less if it has less.

        Raises:
            UnreadableError: It cannot be read.
        """
        with reading():
            return os.pread(self.fd, min(size, self.size), self.offset)

    def parts(self) -> Iterator[bytes]:
        """Yield all of it, at most 256 KiB at a time.

        Raises:
            SourceError: It became shorter.
            UnreadableError: It cannot be read.
        """
        at, end = self.offset, self.offset + self.size
        while at < end:
            trio.from_thread.check_cancelled()
            with reading():
                part = os.pread(self.fd, min(_PIECE_BYTES, end - at), at)
            if not part:
                raise SourceError("it became shorter while it was read")
            at += len(part)
            yield part


@attrs.frozen(kw_only=True)
class Intake:
    """Puts pieces into the store.

    Args:
        store: The store.
        scratch: A directory on the store's file system for what is not verified yet.
        limits: How large a piece may be.
    """

    store: BlobStore
    scratch: Path
    limits: Limits

    def take(self, files: Files, name: str, descriptor: Descriptor) -> None:
        """Put a file into the store if it is what it should be.

        What the store has already is not read.

        Args:
            files: The files of the source.
            name: The file.
            descriptor: What it should be.

        Raises:
            SourceError: It is not, or is missing.
            UnreadableError: It cannot be read.
            OSError: It cannot be kept.
        """
        if self.store.has(descriptor):
            return
        with files.open(name) as piece:
            if piece.size != descriptor.size:
                raise SourceError(
                    f"{descriptor.digest} has {piece.size} bytes, and {descriptor.size} were"
                    " promised"
                )
            with self.copy(piece) as (digest, path):
                if digest != descriptor.digest:
                    raise SourceError(f"the content of {descriptor.digest} is {digest}")
                self.store.publish(digest, path)

    @contextmanager
    def copy(self, piece: Piece) -> Iterator[tuple[str, Path]]:
        """Copy a piece; give its digest and the copy, which goes unless it is moved away.

        Raises:
            SourceError: It is too large.
            UnreadableError: It cannot be read.
            OSError: There is no room for it.
        """
        if piece.size > self.limits.layer_bytes:
            raise SourceError(
                f"a piece of it has {piece.size} bytes, more than {self.limits.layer_bytes}"
            )
        path = self.scratch / f"piece-{token_hex(8)}"
        digest = hashlib.sha256()
        fd = os.open(path, _OUT_FLAGS, 0o600)
        try:
            try:
                for part in piece.parts():
                    digest.update(part)
                    write_all(fd, part)
            finally:
                os.close(fd)
            yield f"sha256:{digest.hexdigest()}", path
        finally:
            path.unlink(missing_ok=True)
