"""A command's streams, joined to this program's own.

Writing to a terminal or a pipe can block for as long as whoever reads it likes, so a
thread does it: the loop goes on watching over the box.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    import boxlite

_READ_BYTES: Final = 64 << 10


async def show(source: boxlite.CommandOutput, fd: int) -> None:
    """Write a stream to a descriptor until the stream ends.

    Raises:
        OSError: Nobody reads the other end any more.
    """
    while chunk := await source.receive_some():
        await trio.to_thread.run_sync(_write_all, fd, chunk)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


async def feed(sink: boxlite.CommandInput, fd: int) -> None:
    """Send what can be read from a descriptor until its end; then close the sink.

    A command that does not want it any more is fine. Cancelled, it may leave a
    thread behind that waits for the descriptor until the process ends: a file can
    be waited for in no other way.
    """
    try:
        while chunk := await trio.to_thread.run_sync(
            os.read, fd, _READ_BYTES, abandon_on_cancel=True
        ):
            await sink.send_all(chunk)
    except trio.BrokenResourceError:
        return
    await sink.aclose()
