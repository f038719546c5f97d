"""A root file system of this machine's, as the only layer of an image."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import HostError, ImageError
from boxlite._tree.format import END, padding

from .descriptor import Descriptor
from .layer_spool import write_all
from .tar_header import HARD_LINK, encode_header

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from .root_tree import Xattrs

LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"

_PIECE_BYTES: Final = 256 << 10
_OUT_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


async def layer_from_directory(directory: Path, out: Path) -> Descriptor:
    """Write a layer with what is in a directory.

    Owners, times in whole seconds, extended attributes that can be read, hard links and
    devices are kept; a box sees of them what squashfs can keep. Holes in files are written
    as zeros, which cost nothing in the image. No link is followed, sockets are left out,
    and what other file systems have that are mounted in it: of those there is the empty
    directory. The same directory gives the same bytes.

    It makes ``out``, whole and on the disk, or raises and leaves nothing. Cancelled, it
    ends within 256 KiB.

    Args:
        directory: The root file system.
        out: The file to make; nothing is there yet.

    Returns:
        What was written; its digest is also the layer's diff_id.

    Raises:
        ImageError: The directory cannot be read or changed meanwhile, or has a name that
            would mean something else in a layer.
        HostError: There is no room.
    """
    return await _write_layer(str(directory), _pack(os.fsencode(directory)), out)


async def _write_layer(image: str, data: Generator[bytes, None, None], out: Path) -> Descriptor:
    try:
        return await trio.to_thread.run_sync(_write, data, out)
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise HostError(
                f"there is no room for {image} in {out.parent}",
                fix="Free some space there, or give boxlite another home: BOXLITE_HOME.",
            ) from exc
        what = os.fsdecode(exc.filename) if exc.filename else image
        raise ImageError(image, f"{what}: {exc.strerror or exc}") from exc


def _write(data: Generator[bytes, None, None], out: Path) -> Descriptor:
    digest, size = hashlib.sha256(), 0
    fd = os.open(out, _OUT_FLAGS, 0o600)
    try:
        with closing(data):
            for piece in data:
                trio.from_thread.check_cancelled()
                write_all(fd, piece)
                digest.update(piece)
                size += len(piece)
        os.fsync(fd)
    except BaseException:
        with suppress(FileNotFoundError):
            out.unlink()
        raise
    finally:
        os.close(fd)
    return Descriptor(media_type=LAYER_TYPE, digest=f"sha256:{digest.hexdigest()}", size=size)


def _pack(top: bytes) -> Generator[bytes, None, None]:
    first_names: dict[tuple[int, int], bytes] = {}
    device = os.lstat(top + b"/.").st_dev
    waiting = [b"."]
    while waiting:
        name = waiting.pop()
        path = top + b"/" + name  # The first one ends with a dot, which a link is followed to.
        if name.rpartition(b"/")[2].startswith(b".wh."):
            raise OSError(errno.EINVAL, "its name would be a whiteout in a layer", path)
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            continue
        if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
            first = first_names.setdefault((found.st_dev, found.st_ino), name)
            if first != name:
                yield _header(name, found, target=first, flag=HARD_LINK)
                continue
        if stat.S_ISREG(found.st_mode):
            yield from _file(name, path)
            continue
        yield _header(
            name,
            found,
            target=_target(path) if stat.S_ISLNK(found.st_mode) else b"",
            xattrs=_xattrs(path),
        )
        if stat.S_ISDIR(found.st_mode):
            if found.st_dev != device:
                continue
            start = b"" if name == b"." else name + b"/"
            with os.scandir(path) as entries:
                waiting += sorted((start + each.name for each in entries), reverse=True)
    yield END


def _file(name: bytes, path: bytes) -> Generator[bytes, None, None]:
    fd = os.open(path, _FILE_FLAGS)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EAGAIN, "another file took its place", path)
        yield _header(name, found, size=found.st_size, xattrs=_xattrs(fd))
        left = found.st_size
        while left:
            piece = os.read(fd, min(left, _PIECE_BYTES))
            if not piece:
                raise OSError(errno.EAGAIN, "it became shorter while it was read", path)
            left -= len(piece)
            yield piece
        yield bytes(padding(found.st_size))
    finally:
        os.close(fd)


def _header(
    name: bytes,
    found: os.stat_result,
    *,
    size: int = 0,
    target: bytes = b"",
    xattrs: Xattrs = (),
    flag: bytes = b"",
) -> bytes:
    is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    return encode_header(
        name,
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime=max(0, found.st_mtime_ns // 1_000_000_000),
        size=size,
        target=target,
        device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if is_device else (0, 0),
        xattrs=xattrs,
        flag=flag,
    )


def _target(path: bytes) -> bytes:
    return os.readlink(path)  # noqa: PTH115 - a Path would tidy it up


def _xattrs(of: bytes | int) -> Xattrs:
    follow = isinstance(of, int)  # A descriptor is the file itself.
    try:
        names = os.listxattr(of, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return ()
        raise
    return tuple(
        (os.fsencode(name), os.getxattr(of, name, follow_symlinks=follow)) for name in sorted(names)
    )
