"""Where the kit is made, and the programs that make it: both gone when work ends.

What is being made lies in a directory of its own below the home's ``tmp`` and
leaves it by a rename, whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from boxlite._program import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from boxlite._layout import HomeLayout

#: More than any program that is used here has to say.
OUTPUT_BYTES: Final = 16 << 20


@contextmanager
def open_workshop(home: HomeLayout, purpose: str) -> Iterator[Path]:
    """Make a directory to work in; however the block ends, it is removed.

    Args:
        home: It is made in this home's ``tmp``, on the file system of what will
            be published from it.
        purpose: Begins its name.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=home.tmp))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


async def run_program(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
) -> bytes:
    """Run a program without input and return its standard output.

    Cancelling kills the program and all that it started, and returns when none
    of them can write any more, at most five seconds later.

    Args:
        argv: The program and its arguments.
        cwd: Where it runs.
        env: Variables to set beside those of this process; messages are never
            translated.

    Raises:
        OSError: The program cannot be executed.
        subprocess.CalledProcessError: It failed, or wrote more than 16 MiB and was
            killed; ``stderr`` has its words.
    """
    variables = {**os.environ, "LC_ALL": "C", **(env or {})}
    answer = await ask(argv, max_bytes=OUTPUT_BYTES, cwd=cwd, env=variables)
    if answer.exit_code != 0:
        code = -9 if answer.exit_code is None else answer.exit_code
        raise subprocess.CalledProcessError(code, list(argv), answer.stdout, answer.stderr)
    return answer.stdout


def last_words(error: subprocess.CalledProcessError) -> str:
    """Return the last line that a failed program wrote to standard error, or how it ended."""
    said: list[str] = error.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else str(error)
