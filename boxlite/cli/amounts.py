"""Amounts as people read them: bytes, and how long ago something was."""

from __future__ import annotations

from typing import Final

_BYTE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_AGE_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def byte_text(count: int) -> str:
    """Return a number of bytes with its unit, such as ``3.4 MiB``.

    Args:
        count: The bytes, 0 or more.
    """
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _BYTE_UNITS:
        value /= 1024
        # What would be rounded to 1024.0 is one of the next unit.
        if value < 1023.95 or unit == _BYTE_UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def age_text(seconds: float) -> str:
    """Return a time that has passed in its largest whole unit, such as ``3h``.

    Args:
        seconds: How long ago it was. What is yet to come, by a clock that was set
            back, counts as now.
    """
    whole = max(0, int(seconds))
    for size, unit in _AGE_UNITS:
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
