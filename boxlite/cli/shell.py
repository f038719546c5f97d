"""``boxlite shell``: a terminal in a box of its own."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import trio
from rich.console import Console

import boxlite
from boxlite._options import BUILTIN_IMAGE
from boxlite._scopes import open_nursery_unwrapped

from .progress import progress
from .pull import ready_image
from .streams import show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STDIN, _STDOUT = 0, 1
_READ_BYTES: Final = 4096
#: What ends a terminal session from outside. Left to their default effect, they would
#: end this program with the terminal in raw mode.
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)


async def shell(
    runtime_options: boxlite.RuntimeOptions,
    box_options: boxlite.BoxOptions,
    command: Sequence[str],
    *,
    cwd: str | None,
    user: str | None,
) -> int:
    """Run a command on a terminal that is joined to ours, and return its exit code.

    Our terminal is in raw mode while the command runs: every key, ^C too, is the
    command's. However this ends, by the command, an error, a signal or the box's
    death, the terminal is as it was before.
    """
    if not (os.isatty(_STDIN) and os.isatty(_STDOUT)):
        sys.stderr.write("boxlite: a shell needs a terminal; try: boxlite run -i -- sh\n")
        return 2
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(boxlite.open_runtime(runtime_options))
        if box_options.image != BUILTIN_IMAGE:
            await ready_image(runtime, box_options.image)
        with progress(Console(stderr=True)) as on_stage:
            box = await stack.enter_async_context(runtime.open_box(box_options, on_stage=on_stage))
        session = _Session()
        with _raw_mode(_STDIN):
            await session.run(box, command, cwd=cwd, user=user)
    return session.exit_code


class _Session:
    """One command on our terminal.

    Attributes:
        exit_code: The command's, or 128 + n when signal n ended the session.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    async def run(
        self, box: boxlite.Box, command: Sequence[str], *, cwd: str | None, user: str | None
    ) -> None:
        env = {"TERM": os.environ.get("TERM", "xterm-256color")}
        async with open_nursery_unwrapped() as nursery:
            # Before the size is asked for: a change after that must not be missed.
            await nursery.start(self._end_on_signal, nursery.cancel_scope)
            async with box.exec(
                command, env=env, cwd=cwd, user=user, terminal=_size()
            ) as execution:
                await nursery.start(self._follow_size, execution)
                nursery.start_soon(_type, execution.stdin)
                await show(execution.stdout, _STDOUT)
                self.exit_code = await execution.wait()
            nursery.cancel_scope.cancel()

    async def _end_on_signal(
        self, session: trio.CancelScope, *, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(*_ENDINGS) as signals:
            task_status.started()
            async for number in signals:
                self.exit_code = 128 + number
                session.cancel()

    async def _follow_size(
        self, execution: boxlite.Execution, *, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(signal.SIGWINCH) as signals:
            # It may have changed since it was asked for.
            await execution.resize(*_rows_and_columns())
            task_status.started()
            async for _ in signals:
                await execution.resize(*_rows_and_columns())


async def _type(sink: boxlite.CommandInput) -> None:
    """Send what is typed. No thread: one that is left reading would eat a key."""
    try:
        while True:
            await trio.lowlevel.wait_readable(_STDIN)
            keys = os.read(_STDIN, _READ_BYTES)
            if not keys:
                return
            await sink.send_all(keys)
    except trio.BrokenResourceError:
        return


def _rows_and_columns() -> tuple[int, int]:
    size = os.get_terminal_size(_STDIN)
    # A terminal that does not know its size says 0.
    return size.lines or 24, size.columns or 80


def _size() -> boxlite.TerminalSize:
    rows, columns = _rows_and_columns()
    return boxlite.TerminalSize(rows=rows, columns=columns)


@contextmanager
def _raw_mode(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        # What was typed and not read was for the command.
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
