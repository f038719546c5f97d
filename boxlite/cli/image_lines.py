"""How far an image is, as plain lines: for a pipe, a file, or a terminal of paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import boxlite

from .amounts import byte_text

if TYPE_CHECKING:
    from rich.console import Console

    #: What ``Images`` tells while it works.
    Event = boxlite.PullProgress | boxlite.ConvertProgress

_DIGITS: Final = 12
_DOING: Final = {"unpack": "unpacking", "pack": "making the root of"}


def short_digest(digest: str) -> str:
    """Return the beginning of a digest by which people know it, without its algorithm."""
    return digest.rpartition(":")[2][:_DIGITS]


def layer_text(event: boxlite.PullProgress) -> str | None:
    """Return what there is to say of a layer that is there, or None as long as it is not."""
    if event.kind != "layer" or event.state not in ("verified", "cached"):
        return None
    here = ", was there" if event.state == "cached" else ""
    return f"layer {short_digest(event.digest)}: {byte_text(event.total_bytes)}{here}"


def step_text(event: boxlite.ConvertProgress) -> str:
    """Return what is being done to make the root of an image."""
    return f"{_DOING[event.step]} {event.image}"


class Lines:
    """Shows events as lines, one for each layer that is there and each step that begins.

    Args:
        console: Where to show them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = ""

    def __call__(self, event: Event) -> None:
        """Show an event, unless it only says that something goes on."""
        if isinstance(event, boxlite.PullProgress):
            if (text := layer_text(event)) is not None:
                self.say(text)
        elif self._step != (step := step_text(event)):
            self._step = step
            self.say(step)

    def say(self, text: str) -> None:
        """Show a line, however long it is."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
