"""What a copy is called, on either side: checked before anything is looked at."""

from __future__ import annotations

import os
from pathlib import Path

from ._errors import InvalidOptionError
from ._path import BoxPath
from ._tree.format import NAME_BYTES


def box_path(field: str, path: str | BoxPath, *, name: str | None = None) -> str:
    """Return a path in the box.

    Args:
        field: What an error calls it.
        path: Absolute. One that ends with a slash is the directory for what has the name.
        name: The name; None where no copy is to be made.

    Raises:
        InvalidOptionError: It cannot be used.
    """
    text = str(path) if isinstance(path, BoxPath) else path
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise InvalidOptionError(field, path, "an absolute path in the box, without NUL")
    return _named(field, text, name)


def host_path(field: str, path: str | os.PathLike[str], *, name: str | None = None) -> Path:
    """Return a path of this machine; otherwise as :func:`box_path`. Looks at no disk."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidOptionError(field, path, "a path, without NUL")
    return Path(_named(field, text, name))


def own_name(path: str | os.PathLike[str]) -> str:
    """Return what a path of this machine is called itself, link or not."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100 - links stay links


def _named(field: str, path: str, name: str | None) -> str:
    if name is not None and path.endswith("/"):
        path += name
    if name is not None and path.rpartition("/")[2] in ("", ".", ".."):
        raise InvalidOptionError(field, path, "the name of the copy: the source has none")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise InvalidOptionError(field, path, "text that can be a path") from None
    if size > NAME_BYTES:
        raise InvalidOptionError(field, path[:50] + "...", f"at most {NAME_BYTES} bytes")
    return path
