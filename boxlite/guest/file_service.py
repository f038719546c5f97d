"""The gRPC service ``boxlite.v1.Files``."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from grpclib.const import Cardinality, Handler

from boxlite._rpc._generated.boxlite.v1 import (
    ChangeRequest,
    ChangeResponse,
    ListRequest,
    ListResponse,
    ReadRequest,
    ReadResponse,
    StatRequest,
    StatResponse,
    WriteRequest,
    WriteResponse,
)
from boxlite._wire import FILE_PIECE_BYTES, NAMES_AT_ONCE

from .guest_service import only_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from grpclib.server import Stream

    from .place import Place

_PERMISSIONS: Final = 0o7777


class FileService:
    """Answers for the files of the guest.

    The calls are the kernel's own, made where they are asked for: the file systems
    are in memory or on a disk that is the host's page cache. What could wait for
    ever, such as a fifo, is not opened to be waited for.

    Args:
        place: Where paths are looked up.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods, as grpclib wants them."""
        calls: list[tuple[str, Callable[[Any], Any], type, type]] = [
            ("Read", _read, ReadRequest, ReadResponse),
            ("Write", _write, WriteRequest, WriteResponse),
            ("Stat", _stat, StatRequest, StatResponse),
            ("List", _list, ListRequest, ListResponse),
            ("Change", _change, ChangeRequest, ChangeResponse),
        ]
        return {
            f"/boxlite.v1.Files/{name}": Handler(
                _answering(function, answer, self._place), Cardinality.UNARY_UNARY, request, answer
            )
            for name, function, request, answer in calls
        }


def _answering(
    function: Callable[[Any], Any], answer: Callable[..., Any], place: Place
) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    """Make a method of a function; what the kernel refuses is its answer."""

    async def method(stream: Stream[Any, Any]) -> None:
        request = await only_message(stream)
        try:
            with place.entered():
                message = function(request)
        except OSError as error:
            message = answer(error=error.errno or errno.EIO)
        await stream.send_message(message)

    return method


def checked_path(path: bytes) -> bytes:
    """Return a path of the host's if it can be one.

    Raises:
        OSError: It is not absolute, or has a NUL in it: EINVAL.
    """
    if not path.startswith(b"/") or b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return path


def _read(request: ReadRequest) -> ReadResponse:
    if not 1 <= request.size <= FILE_PIECE_BYTES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # O_NONBLOCK: opening a fifo that nobody writes to must not hold up the agent.
    fd = os.open(checked_path(request.path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_regular(fd)
        return ReadResponse(data=os.pread(fd, request.size, request.offset))
    finally:
        os.close(fd)


def _write(request: WriteRequest) -> WriteResponse:
    if len(request.data) > FILE_PIECE_BYTES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    if request.create:
        flags |= os.O_CREAT
    fd = os.open(checked_path(request.path), flags, request.mode & _PERMISSIONS)
    try:
        _require_regular(fd)
        if request.create:
            os.ftruncate(fd, 0)
        offset, rest = request.offset, request.data
        while rest:
            written = os.pwrite(fd, rest, offset)
            offset, rest = offset + written, rest[written:]
    finally:
        os.close(fd)
    return WriteResponse()


def _require_regular(fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))


def _stat(request: StatRequest) -> StatResponse:
    found = os.stat(checked_path(request.path), follow_symlinks=request.follow)
    return StatResponse(
        mode=found.st_mode,
        size=found.st_size,
        uid=found.st_uid,
        gid=found.st_gid,
        links=found.st_nlink,
        modified_ns=max(0, found.st_mtime_ns),
    )


def _list(request: ListRequest) -> ListResponse:
    names = sorted(name for name in os.listdir(checked_path(request.path)) if name > request.after)
    listed = b"".join(name + b"\0" for name in names[:NAMES_AT_ONCE])
    return ListResponse(names=listed, more=len(names) > NAMES_AT_ONCE)


def _change(request: ChangeRequest) -> ChangeResponse:
    path = checked_path(request.path)
    if request.make_directory is not None:
        os.mkdir(path, request.make_directory & _PERMISSIONS)
    elif request.unlink is not None:
        os.unlink(path)
    elif request.remove_directory is not None:
        os.rmdir(path)
    elif request.rename_to is not None:
        os.rename(path, checked_path(request.rename_to))
    elif request.set_mode is not None:
        os.chmod(path, request.set_mode & _PERMISSIONS)
    else:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return ChangeResponse()
