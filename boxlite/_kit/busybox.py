"""Finding the busybox that becomes the guest's shell and tools."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Final

from boxlite._errors import HostError

_PLACES: Final = ("/usr/bin/busybox", "/bin/busybox")
_ELF_INTERPRETER: Final = 3


def find_busybox() -> Path:
    """Return a statically linked busybox: the libraries of a dynamic one are not in the guest.

    Raises:
        HostError: There is none.
    """
    dynamic = None
    for candidate in (*_PLACES, shutil.which("busybox")):
        if candidate is not None and (static := is_static(Path(candidate))) is not None:
            if static:
                return Path(candidate)
            dynamic = candidate
    raise HostError(
        "busybox is not installed"
        if dynamic is None
        else f"{dynamic} needs shared libraries, and the guest's must be static",
        fix="Install it (Debian, Ubuntu: `sudo apt-get install busybox-static`).",
    )


def is_static(program: Path) -> bool | None:
    """Tell whether a 64-bit ELF program runs without an interpreter; None if it is none.

    See elf(5): a dynamic program names its loader in a segment of type PT_INTERP.
    """
    try:
        with program.open("rb") as file:
            header = file.read(64)
            if header[:5] != b"\x7fELF\x02":
                return None
            (offset,) = struct.unpack_from("<Q", header, 32)
            size, count = struct.unpack_from("<HH", header, 54)
            file.seek(offset)
            table = file.read(size * count)
        kinds = {struct.unpack_from("<I", table, size * index)[0] for index in range(count)}
    # ValueError: an offset that no file has.
    except (OSError, ValueError, struct.error):
        return None
    return _ELF_INTERPRETER not in kinds
