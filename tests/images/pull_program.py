"""A program that pulls an image into a home and prints what it is told, to be killed at any moment.

``python pull_program.py HOME REFERENCE``. Each line is one event, written at once:
``manifest verified``, ``layer downloading``, ``unpack``, ``pack``; the last one is ``ready``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

import boxlite


def tell(progress: boxlite.PullProgress | boxlite.ConvertProgress) -> None:
    """Print one event."""
    if isinstance(progress, boxlite.PullProgress):
        say(f"{progress.kind} {progress.state}")
    else:
        say(progress.step)


def say(line: str) -> None:
    """Print a line, without anything that could keep it back."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


async def main(home: Path, reference: str) -> None:
    """Pull the image."""
    registries = boxlite.RegistryOptions(docker_config=home / "no-such-file")
    async with boxlite.open_runtime(home=home, registries=registries) as runtime:
        await runtime.images.pull(reference, on_progress=tell)
        say("ready")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
