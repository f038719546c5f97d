"""The home directory: whether it will do, and making it.

What is in there decides what runs in a box, so it must be ours alone to change.
How long its path is does not matter to the sockets in it: they are reached
through ``/proc/self/fd``.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from typing import TYPE_CHECKING, Final

from ._errors import BoxliteError, HostError, InvalidOptionError

if TYPE_CHECKING:
    from pathlib import Path

    from ._layout import HomeLayout

_ELSEWHERE: Final = "or give another home as RuntimeOptions.home or BOXLITE_HOME"


def prepare_home(home: HomeLayout) -> None:
    """Make the home and its directories, with mode 0700, where they are missing.

    What is there already stays as it is. Blocks for a few system calls.

    Raises:
        InvalidOptionError: The path is not absolute, too long, or not a directory.
        HostError: It cannot be made or written, is another user's, or others
            may change it.
    """
    _check_path(home.root)
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(home.root)
        for directory in (home.kit, home.images, home.templates, home.tmp, home.boxes):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _explained(home.root, error) from error


def examine_home(home: HomeLayout) -> str:
    """Say in a few words how the home is, without making anything.

    Raises:
        InvalidOptionError: As :func:`prepare_home`.
        HostError: As :func:`prepare_home`.
    """
    _check_path(home.root)
    try:
        nearest = nearest_directory(home.root)
        if nearest == home.root:
            _check_directory(home.root)
            return f"{home.root}, writable"
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            raise _refusal(nearest)
    except OSError as error:
        raise _explained(home.root, error) from error
    return f"{home.root} will be made"


def nearest_directory(path: Path) -> Path:
    """Return the directory itself, or the closest one above it that is there.

    Raises:
        OSError: Something on the way is not a directory, or cannot be looked at.
    """
    while True:
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        except FileNotFoundError:
            # A dangling link: nothing can be made in its place.
            if path.is_symlink():
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)
                ) from None
            path = path.parent
        else:
            return path


def _check_path(root: Path) -> None:
    if not root.is_absolute():
        raise InvalidOptionError("home", str(root), "an absolute path")
    if "\0" in str(root):
        raise InvalidOptionError("home", str(root), "a path without a NUL character")


def _check_directory(root: Path) -> None:
    found = root.stat()
    if found.st_uid != os.geteuid():
        raise HostError(
            f"the home {root} belongs to {_user(found.st_uid)}, and this is {_user(os.geteuid())}",
            fix=f"Run as that user, {_ELSEWHERE}.",
        )
    if found.st_mode & 0o022:
        raise HostError(
            f"the home {root} may be changed by other users"
            f" (mode {stat.S_IMODE(found.st_mode):04o})",
            fix=f"Run `chmod go-w {root}`, {_ELSEWHERE}.",
        )
    if not os.access(root, os.W_OK | os.X_OK, effective_ids=True):
        raise _refusal(root)


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _refusal(directory: Path) -> OSError:
    """Return the error that os.access() only tells as False."""
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    return OSError(number, os.strerror(number), str(directory))


def _explained(root: Path, error: OSError) -> BoxliteError:
    """Return what an error with the home means to the one who chose it."""
    where = error.filename or root
    match error.errno:
        case errno.ENAMETOOLONG:
            allowed = "a path of at most 4,095 bytes, each part of at most 255"
            return InvalidOptionError("home", str(root), allowed)
        case errno.ENOTDIR | errno.EEXIST:
            allowed = f"a directory, and {where} is not one"
            return InvalidOptionError("home", str(root), allowed)
        case errno.EROFS:
            return HostError(
                f"the home {root} cannot be used: the file system of {where} is read-only",
                fix=f"Mount it writable, {_ELSEWHERE}.",
            )
        case errno.EACCES | errno.EPERM:
            own = f"Run `chmod u+rwx {root}`"
            make = f"Run `sudo install -d -m 0700 -o $USER {root}`"
            return HostError(
                f"the home {root} cannot be used: {_user(os.geteuid())} may not make or change"
                f" {where}",
                fix=f"{own if os.access(root, os.F_OK) else make}, {_ELSEWHERE}.",
            )
    return HostError(
        f"the home {root} cannot be used: {where}: {error.strerror}",
        fix=f"Put that right, {_ELSEWHERE}.",
    )
