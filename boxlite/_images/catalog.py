r"""What the images of a home are called.

::

    images/names/<sha256 of the name>.json    {"version", "name", "manifest": {...}, "added_at"}

A name is put in place by rename, as a whole. One file per name: a damaged one is one
image that has to be pulled again, and names are not paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from boxlite._evidence import read_excerpt

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
        """Return what a name leads to, or None if it leads nowhere."""
        return self._read(self._path(name))

    def entries(self) -> Iterator[Entry]:
        """Yield all names in no order. What is damaged is none.

        Raises:
            OSError: The directory cannot be read.
        """
        with suppress(FileNotFoundError):
            for path in self.root.glob("*.json"):
                if (entry := self._read(path)) is not None and self._path(entry.name) == path:
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
        """Remove what was being written when its program was killed.

        Raises:
            OSError: It cannot be removed.
        """
        with suppress(FileNotFoundError):
            for path in self.root.iterdir():
                if path.suffix != ".json" or self._read(path) is None:
                    path.unlink()

    def _path(self, name: str) -> Path:
        return self.root / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _sync(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _read(path: Path) -> Entry | None:
        excerpt = read_excerpt(path, head=_FILE_BYTES, tail=0)
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            record: Any = json.loads(excerpt.whole or b"null")
            if record["version"] == _VERSION and isinstance(record["name"], str):
                return Entry(
                    name=record["name"],
                    manifest=Descriptor(**record["manifest"]),
                    added_at=float(record["added_at"]),
                )
        return None
