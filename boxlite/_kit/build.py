"""``python -m boxlite._kit.build MODULES OUT``: the build, in a process of its own.

Compiling the standard library keeps an interpreter busy for seconds; in a
child it neither blocks the caller's loop nor outlives its cancellation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from boxlite._errors import BoxliteError

from .initramfs import Recipe


def main(arguments: list[str]) -> None:
    """Build the archive for a modules directory into a file."""
    modules, out = map(Path, arguments)
    try:
        with out.open("wb") as file:
            Recipe.find(modules).build(file)
            file.flush()
            os.fsync(file.fileno())
    except (BoxliteError, OSError) as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main(sys.argv[1:])
