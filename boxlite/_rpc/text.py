"""Words of the guest in messages for a person."""

from __future__ import annotations

from typing import Final

#: How much of the guest's own words an error message holds.
SHOWN_CHARACTERS: Final = 500


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    r"""Return text that is safe to print on a terminal and not too long.

    Every character that is not printable, newlines and direction marks
    included, becomes an escape such as ``\x1b``.

    Args:
        text: What the guest sent.
        limit: The most characters of it to show. Default 500.
    """
    cut = text[:limit]
    if not cut.isprintable():
        cut = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
            for letter in cut
        )
    return cut if len(text) <= limit else f"{cut}... ({len(text)} characters)"
