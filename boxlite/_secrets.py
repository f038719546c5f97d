"""Keeping the values of environment variables out of what is shown.

Whoever gives a command a password in its environment did not mean it for a log,
and a guest may print its environment to its console, by accident or to be nasty.
So the values are known here for as long as they may turn up, and are blotted out
of every text that came from a guest or from a process that runs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from ._evidence import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._evidence import Excerpt

_BLOT: Final = b"***"
#: Shorter ones are words like "1" and "yes": without them no text could be read.
_SHORTEST: Final = 4
#: A program that runs commands for ever, each with new values, must not fill memory.
_MOST: Final = 1024


class Secrets:
    """The values that must not be shown: those of 4 bytes or more, the newest 1,024 of them.

    Args:
        values: The first ones.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        # A dictionary, for it is a set that keeps an order.
        self._pieces: dict[bytes, None] = {}
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        """Keep more values from being shown; of one with several lines, each line too."""
        for value in values:
            data = value.encode("utf-8", "surrogateescape")
            for piece in {data, *data.splitlines()}:
                if len(piece) >= _SHORTEST:
                    self._pieces.pop(piece, None)
                    self._pieces[piece] = None
        while len(self._pieces) > _MOST:
            del self._pieces[next(iter(self._pieces))]

    def hide(self, data: bytes) -> bytes:
        """Return the bytes with each value replaced by ``***``."""
        # The longest first: one may be a part of another.
        for piece in sorted(self._pieces, key=len, reverse=True):
            data = data.replace(piece, _BLOT)
        return data

    def hide_text(self, text: str) -> str:
        """Return a text that was made printable, with each value replaced by ``***``."""
        for piece in sorted(self._pieces, key=len, reverse=True):
            text = text.replace(printable(piece), _BLOT.decode())
        return text

    def hide_in(self, excerpt: Excerpt) -> Excerpt:
        """Return the excerpt without the values, and without the half of one at a cut."""
        head, tail = self.hide(excerpt.head), self.hide(excerpt.tail)
        size = excerpt.size or 0
        if size > len(excerpt.head):
            head = self._hide_half_at_end(head)
        if size > len(excerpt.tail):
            tail = self._hide_half_at_start(tail)
        return attrs.evolve(excerpt, head=head, tail=tail)

    def _hide_half_at_end(self, data: bytes) -> bytes:
        half = max((_overlap(data, piece) for piece in self._pieces), default=0)
        return data[: len(data) - half] + _BLOT if half else data

    def _hide_half_at_start(self, data: bytes) -> bytes:
        backwards = data[::-1]
        half = max((_overlap(backwards, piece[::-1]) for piece in self._pieces), default=0)
        return _BLOT + data[half:] if half else data


def _overlap(data: bytes, piece: bytes) -> int:
    """Return how much of the beginning of a piece, short of all of it, the data ends with."""
    beginning = piece[:_SHORTEST]
    at = data.find(beginning, max(0, len(data) - len(piece) + 1))
    while at >= 0:
        if piece.startswith(data[at:]):
            return len(data) - at
        at = data.find(beginning, at + 1)
    return 0
