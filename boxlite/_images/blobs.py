r"""The store of what images are made of, by the digest of the content.

::

    HOME/images/             0700
      blobs/sha256/<hex>     0600, whole and verified
      partial/<hex>          0600, a download that was cut short, to be resumed

A blob is verified before it gets its name and never changes after that, so its
name and its size are enough to trust it. One process writes, the one that owns
the home; any may read. Everything here blocks for a few system calls: what may
wait for a disk is called in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import attrs

from .descriptor import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .descriptor import Descriptor

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@attrs.frozen
class BlobStore:
    """Blobs below one directory, which is made when something is put in it.

    Args:
        root: The directory; the one above it exists.
    """

    root: Path

    @property
    def blobs(self) -> Path:
        """The directory of the blobs."""
        return self.root / "blobs" / "sha256"

    @property
    def partials(self) -> Path:
        """The directory of what is not whole."""
        return self.root / "partial"

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be.

        Raises:
            ValueError: It is not a digest.
        """
        return self.blobs / _hex(digest)

    def partial(self, digest: str) -> Path:
        """Return where a blob is while it is downloaded; its directory exists afterwards.

        Raises:
            ValueError: It is not a digest.
            OSError: The directory cannot be made.
        """
        path = self.partials / _hex(digest)
        self._make(self.partials)
        return path

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob is here, with the size that it should have.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            return self.path(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return the content of a blob.

        Args:
            descriptor: The blob.
            limit: The most bytes that it may have.

        Raises:
            ValueError: It has more, or another number than the descriptor says.
            OSError: It is not here, or cannot be read.
        """
        if descriptor.size > limit:
            raise ValueError(f"{descriptor.digest} has more than {limit} bytes")
        with self.path(descriptor.digest).open("rb") as file:
            data = file.read(descriptor.size + 1)
        if len(data) != descriptor.size:
            raise ValueError(f"{descriptor.digest} has not the size of {descriptor.size} bytes")
        return data

    def add(self, data: bytes) -> str:
        """Put a small blob in the store, whole or not at all, and return its digest.

        Raises:
            OSError: There is no space, or no right.
        """
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        # A name of its own, for a download of the same blob may be under way.
        made = self.partial(digest).with_name(f"{_hex(digest)}.{token_hex(8)}")
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            self.publish(digest, made)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
        return digest

    def publish(self, digest: str, partial: Path) -> Path:
        """Give a file its place as a blob. The caller has verified it.

        After a crash of the machine the blob is whole or not there: its content is on
        the disk before its name is, and its name is when this returns.

        Args:
            digest: What the content was found to have.
            partial: The file, on the same file system. Gone afterwards.

        Returns:
            The path of the blob.

        Raises:
            OSError: It could not be done; the file is where it was.
        """
        path = self.path(digest)
        self._make(self.blobs)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(path)
        _sync(self.blobs)
        return path

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in no order.

        Raises:
            OSError: The directory cannot be read.
        """
        with suppress(FileNotFoundError), os.scandir(self.blobs) as entries:
            for entry in entries:
                if _HEX.fullmatch(entry.name):
                    yield f"sha256:{entry.name}"

    def remove(self, digest: str) -> int:
        """Remove a blob, and what there is of a download of it, if they are here.

        Returns:
            The bytes that this freed.

        Raises:
            OSError: They cannot be removed.
        """
        freed = 0
        for path in (self.path(digest), self.partials / _hex(digest)):
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def sweep(self) -> int:
        """Remove every download that was cut short. None may be under way.

        Returns:
            The bytes that this freed.

        Raises:
            OSError: Something cannot be removed.
        """
        freed = 0
        with suppress(FileNotFoundError), os.scandir(self.partials) as entries:
            for entry in entries:
                freed += entry.stat(follow_symlinks=False).st_size
                os.unlink(entry.path)  # noqa: PTH108 - the entry has a path, and is none
        return freed

    def _make(self, directory: Path) -> None:
        missing = [
            path
            for path in (directory, *directory.parents)
            if path.is_relative_to(self.root) and not path.is_dir()
        ]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            _sync(path.parent)


def _hex(digest: str) -> str:
    if not is_digest(digest):
        raise ValueError(f"{digest[:100]!r} is not a sha256 digest")
    return digest.partition(":")[2]


def _sync(directory: Path) -> None:
    """Make the names in a directory last."""
    descriptor = os.open(directory, _DIRECTORY_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
