"""Unix sockets whose path may be of any length.

A Unix socket's address holds 108 bytes (``sun_path``, unix(7)), which a home
directory deep in a file system exceeds. So sockets are bound and reached
through an open descriptor of their directory: ``/proc/self/fd/N/name`` is short
whatever the directory is called, needs no symbolic link that another user could
plant, and leaves nothing behind.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from ._errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a short name of a path, valid in this process while the block runs."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bind_unix(path: Path, *, backlog: int) -> socket.socket:
    """Return a socket that listens at a path, after removing what is stale there.

    Args:
        path: Where to listen; its directory exists and belongs to this user.
        backlog: How many connections may wait to be accepted.

    Raises:
        HostError: The socket could not be bound.
    """
    with ExitStack() as undo:
        try:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with suppress(FileNotFoundError):
                path.unlink()
            with short_path(path) as name:
                listener.bind(name)
            listener.listen(backlog)
        except OSError as exc:
            raise HostError(
                f"cannot listen on the socket {path}: {exc.strerror}",
                fix="Check the file system and the rights of that directory; if descriptors"
                " ran out, raise the limit (ulimit -n).",
            ) from exc
        undo.pop_all()
    return listener


async def connect_unix(path: Path) -> trio.SocketStream:
    """Connect to a listening Unix socket.

    Raises:
        OSError: Nobody listens there.
    """
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as name:
            await connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)
