"""``boxlite run``: one command in a box of its own."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, BinaryIO

import trio
from rich.console import Console

import boxlite
from boxlite._scopes import open_nursery_unwrapped

from .progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

# The command did not end in time: what timeout(1) exits with.
EXIT_TIMEOUT = 124


async def run(
    runtime_options: boxlite.RuntimeOptions,
    box_options: boxlite.BoxOptions,
    command: Sequence[str],
    *,
    cwd: str,
    timeout: float | None,
    interactive: bool,
) -> int:
    """Run a command, with its streams joined to ours, and return its exit code."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(boxlite.open_runtime(runtime_options))
        with progress(Console(stderr=True)) as on_stage:
            box = await stack.enter_async_context(runtime.open_box(box_options, on_stage=on_stage))
        with trio.move_on_after(timeout if timeout is not None else float("inf")) as scope:
            async with box.exec(command, cwd=cwd) as execution:
                async with open_nursery_unwrapped() as feeding:
                    if interactive:
                        feeding.start_soon(_copy_in, execution.stdin)
                    else:
                        await execution.stdin.aclose()
                    async with open_nursery_unwrapped() as showing:
                        showing.start_soon(_copy_out, execution.stdout, sys.stdout.buffer)
                        showing.start_soon(_copy_out, execution.stderr, sys.stderr.buffer)
                    code = await execution.wait()
                    # Only our own standard input can still be open.
                    feeding.cancel_scope.cancel()
        if scope.cancelled_caught:
            sys.stderr.write(f"boxlite: the command did not end within {timeout:g} s\n")
            return EXIT_TIMEOUT
    return code


async def _copy_out(source: boxlite.CommandOutput, sink: BinaryIO) -> None:
    while chunk := await source.receive_some():
        sink.write(chunk)
        sink.flush()


async def _copy_in(sink: boxlite.CommandInput) -> None:
    try:
        # A read of a terminal cannot be cancelled, so its thread is left to the
        # process's end when the command ends first.
        while chunk := await trio.to_thread.run_sync(
            os.read, sys.stdin.fileno(), 65536, abandon_on_cancel=True
        ):
            await sink.send_all(chunk)
    except trio.BrokenResourceError:
        return
    await sink.aclose()
