"""A directory per user for what takes long to build, so that a second run of the tests has it.

An entry is found by its recipe. It is built in a directory of its own, under a lock, and
renamed when it is whole: builders that run at once build it once, and one that is killed
leaves nothing that is taken for an entry.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: An entry of another recipe is kept for so long: another checkout may use it.
_KEPT_SECONDS: Final = 40 * 86400


def cache_directory() -> Path:
    """Return this user's cache, made if it was not there (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "boxlite-tests"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def cached(
    name: str,
    recipe: bytes,
    build: Callable[[Path], None],
    *,
    directory: Path | None = None,
) -> Path:
    """Return the directory that a builder has filled, now or in an earlier run.

    Whoever gets it shares it with others and leaves it as it is.

    Args:
        name: What it is, for people: letters, digits and dashes.
        recipe: All that the result depends on. Another recipe is another entry.
        build: Fills the empty directory that it is given. What it raises is raised here,
            and nothing is kept.
        directory: Where the cache is; this user's, by default.
    """
    assert re.fullmatch(r"[a-z0-9-]+", name), name
    directory = directory or cache_directory()
    entry = directory / f"{name}.{hashlib.sha256(recipe).hexdigest()[:16]}"
    if entry.is_dir():
        return entry
    with _locked(directory / f"{name}.lock"):
        if not entry.is_dir():
            _tidy(directory, name)
            work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory))
            try:
                build(work)
                work.rename(entry)
            except BaseException:
                shutil.rmtree(work)
                raise
    return entry


def _tidy(directory: Path, name: str) -> None:
    """Remove what killed builders left, which are gone since the lock is ours, and old entries."""
    for left in directory.glob(f".{name}.*"):
        shutil.rmtree(left)
    for entry in directory.glob(f"{name}.*"):
        if entry.is_dir() and time.time() - entry.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(entry)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
