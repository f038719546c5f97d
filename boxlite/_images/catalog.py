r"""What the images of a home are called.

::

    images/names/<sha256 of the name>.json    {"version", "name", "manifest": {...}, "added_at"}

A name is put in place by rename, as a whole. One file per name: a damaged one is one
image that has to be pulled again, and names are not paths.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from .descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION: Final = 1
_FILE_BYTES: Final = 16 << 10


@attrs.frozen(kw_only=True)
class Entry:
    """A name and what it leads to.

    Args:
        name: A canonical reference, or the digest of a manifest that has no other name.
        manifest: The manifest.
        added_at: When the name was given to it, in Unix seconds.
    """

    name: str
    manifest: Descriptor
    added_at: float


@attrs.frozen
class Catalog:
    """The names below one directory, which is made when there is one. Blocks for some calls.

    Args:
        root: The directory.
    """

    root: Path

    def put(self, entry: Entry) -> None:
        """Give a name to an image, taking it from another if need be; durable on return.

        Raises:
            OSError: It cannot be written.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"version": _VERSION, **attrs.asdict(entry)})
        fd, draft = tempfile.mkstemp(prefix=".", dir=self.root)
        try:
            with open(fd, "w", encoding="ascii") as file:  # noqa: PTH123 - it has a descriptor
                file.write(text)
                file.flush()
                os.fsync(fd)
            Path(draft).rename(self._path(entry.name))
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        self._sync()

    def get(self, name: str) -> Entry | None:
        """Return what a name leads to, or None if it leads nowhere.

        Raises:
            OSError: It cannot be read.
        """
        return self._read(self._path(name))

    def entries(self) -> Iterator[Entry]:
        """Yield all names in no order. What is damaged is none; what cannot be read may be one.

        Raises:
            OSError: The directory, or a file in it, cannot be read.
        """
        for path in self._files():
            if (entry := self._read(path)) is not None:
                yield entry

    def remove(self, name: str) -> bool:
        """Forget a name; tell whether there was one; durable on return.

        Raises:
            OSError: It cannot be removed.
        """
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        self._sync()
        return True

    def sweep(self) -> None:
        """Remove what was being written when its program was killed, and what is damaged.

        Raises:
            OSError: It cannot be removed, or read: then it may be a name.
        """
        for path in self._files():
            if self._read(path) is None:
                path.unlink()

    def _files(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except FileNotFoundError:
            return []

    def _path(self, name: str) -> Path:
        return self.root / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _sync(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _read(self, path: Path) -> Entry | None:
        """Return the name that a file is; None if it is damaged, or not there."""
        # Also what is not text, and numbers that are none: all that JSON can hold.
        with suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
            record: Any = json.loads(_content(path))
            name, added_at = record["name"], float(record["added_at"])
            if (
                record["version"] == _VERSION
                and isinstance(name, str)
                and self._path(name) == path
                and math.isfinite(added_at)
            ):
                return Entry(
                    name=name, manifest=Descriptor(**record["manifest"]), added_at=added_at
                )
        return None


def _content(path: Path) -> bytes:
    """Return what is in a small regular file; nothing if it is another kind, or not there.

    A failure to read it is raised: whoever takes it for damage removes the image.
    """
    try:
        # O_NONBLOCK: opening a fifo that somebody left there must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP):
            return b""
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _FILE_BYTES:
            return b""
        return os.pread(fd, _FILE_BYTES, 0)
    finally:
        os.close(fd)
