"""The root file systems of images: one file for each stack of layers, made once.

What a root is made of is in its name, so images with the same layers share it. It is
made elsewhere and moved here whole, and never changes after that.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Changed whenever the same layers would give another file.
FORMAT: Final = 1
_SUFFIX: Final = ".squashfs"
_KEY_CHARACTERS: Final = 32


def root_name(diff_ids: Sequence[str]) -> str:
    """Return the name of the root that layers make.

    Args:
        diff_ids: The digests of what is in them, the lowest first.
    """
    text = "\n".join([f"boxlite root {FORMAT}", *diff_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARACTERS] + _SUFFIX


@attrs.frozen
class Roots:
    """The roots of a home.

    Args:
        root: Their directory.
        tmp: Where they are made, on the same file system.
    """

    root: Path
    tmp: Path

    def path(self, name: str) -> Path:
        """Return where a root is, or would be."""
        return self.root / name

    def size(self, name: str) -> int | None:
        """Return the size of a root, or None if it is not there.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """Give a directory to work in; it goes with all that is in it.

        Raises:
            OSError: It cannot be made.
        """
        work = Path(tempfile.mkdtemp(prefix="root-", dir=self.tmp))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, made: Path, name: str) -> None:
        """Give a file, which is on the disk, its place as a root.

        Raises:
            OSError: It could not be done.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.chmod(0o400)
        made.rename(self.path(name))

    def names(self) -> list[str]:
        """Return the names of all roots.

        Raises:
            OSError: The directory cannot be read.
        """
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir())

    def remove(self, name: str) -> int:
        """Remove a root; return the bytes that this freed. Boxes that have it open go on.

        Raises:
            OSError: It cannot be removed.
        """
        path = self.path(name)
        freed = path.stat().st_size
        path.unlink()
        return freed
