"""``boxlite run``: one command in a box of its own."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio
from rich.console import Console

import boxlite
from boxlite._options import BUILTIN_IMAGE
from boxlite._scopes import open_nursery_unwrapped

from .progress import progress
from .pull import ready_image
from .streams import feed, show

if TYPE_CHECKING:
    from collections.abc import Sequence

_STDIN, _STDOUT, _STDERR = 0, 1, 2
# The command did not end in time: what timeout(1) exits with.
EXIT_TIMEOUT = 124


async def run(
    runtime_options: boxlite.RuntimeOptions,
    box_options: boxlite.BoxOptions,
    command: Sequence[str],
    *,
    cwd: str | None,
    user: str | None,
    timeout: float | None,
    interactive: bool,
) -> int:
    """Run a command, with its streams joined to ours, and return its exit code.

    Without a command it is the one that the image has.
    """
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(boxlite.open_runtime(runtime_options))
        if box_options.image != BUILTIN_IMAGE:
            image = await ready_image(runtime, box_options.image)
            command = command or _own_command(image)
        with progress(Console(stderr=True)) as on_stage:
            box = await stack.enter_async_context(runtime.open_box(box_options, on_stage=on_stage))
        with trio.move_on_after(timeout if timeout is not None else float("inf")) as scope:
            async with box.exec(command, cwd=cwd, user=user) as execution:
                async with open_nursery_unwrapped() as feeding:
                    if interactive:
                        feeding.start_soon(feed, execution.stdin, _STDIN)
                    else:
                        await execution.stdin.aclose()
                    async with open_nursery_unwrapped() as showing:
                        showing.start_soon(show, execution.stdout, _STDOUT)
                        showing.start_soon(show, execution.stderr, _STDERR)
                    code = await execution.wait()
                    # Only our own standard input can still be open.
                    feeding.cancel_scope.cancel()
        if scope.cancelled_caught:
            sys.stderr.write(f"boxlite: the command did not end within {timeout:g} s\n")
            return EXIT_TIMEOUT
    return code


def _own_command(image: boxlite.Image) -> Sequence[str]:
    command = image.command()
    if not command:
        raise boxlite.ImageError(
            image.name,
            "it has neither an entrypoint nor a command",
            fix="Say what is to run: boxlite run --image IMAGE COMMAND.",
        )
    return command
