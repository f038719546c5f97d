"""The capabilities that the agent uses of those that it has.

Figures: include/uapi/linux/capability.h of Linux.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SYS_RESOURCE: Final = 1 << 24

_VERSION_3: Final = 0x20080522
#: Effective, permitted and inheritable, of 32 bits each, for the low and the high ones.
_SETS: Final = struct.Struct("6I")
_HEADER: Final = struct.pack("Ii", _VERSION_3, 0)

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def effective(capabilities: int, *, more: bool = False) -> Iterator[None]:
    """Use these capabilities, of those that this process has, while the block runs.

    Args:
        capabilities: One bit for each; what it has not is left out.
        more: Beside those that are in use already.
    """
    before = _sets()
    wanted = capabilities & _joined(before, 1)
    if more:
        wanted |= _joined(before, 0)
    _set_effective(before, wanted)
    try:
        yield
    finally:
        # What the block did to the other sets stays.
        _set_effective(_sets(), _joined(before, 0))


def _sets() -> list[int]:
    data = ctypes.create_string_buffer(_SETS.size)
    if _libc.capget(_HEADER, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capget")
    return list(_SETS.unpack(data.raw))


def _set_effective(sets: list[int], capabilities: int) -> None:
    data = [capabilities & 0xFFFFFFFF, *sets[1:3], capabilities >> 32, *sets[4:]]
    if _libc.capset(_HEADER, _SETS.pack(*data)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def _joined(sets: list[int], which: int) -> int:
    return sets[which + 3] << 32 | sets[which]
