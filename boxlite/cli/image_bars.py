"""How far an image is, as bars at a terminal.

Importing it takes some 50 ms, most of them for rich: it is imported when there is a bar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

import boxlite

from .image_lines import layer_text, short_digest, step_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task, TaskID

    from .image_lines import Event

_BAR_COLUMNS: Final = 20
#: The bar, ``1,023.9/1,023.9 MiB``, ``0:00:00``, and a space between each two.
_MEASURED_COLUMNS: Final = _BAR_COLUMNS + 19 + 7 + 3
_WORDS_COLUMNS_MIN: Final = 18


class _Bytes(DownloadColumn):
    """How many bytes of how many; nothing where that is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Remaining(TimeRemainingColumn):
    """The time that is left; nothing where that can never be known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


def open_bars(console: Console) -> Progress:
    """Return where bars are, as a context manager; they are gone when its block ends.

    Args:
        console: A terminal.
    """
    # A long name gives way to how much there is, and not the other way round.
    words = max(_WORDS_COLUMNS_MIN, console.width - _MEASURED_COLUMNS)
    column = Column(no_wrap=True, overflow="ellipsis", max_width=words)
    return Progress(
        # A registry's IPv6 address has brackets, which are not markup.
        TextColumn("{task.description}", markup=False, table_column=column),
        BarColumn(_BAR_COLUMNS),
        _Bytes(binary_units=True),
        _Remaining(),
        console=console,
        transient=True,
    )


class Bars:
    """Shows events as bars: one for each layer that is coming, one for the root.

    A layer that is there becomes a line above the bars.

    Args:
        progress: Where the bars are.
        what: What is done first, as a bar without an end.
    """

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._beginning: TaskID | None = progress.add_task(what, total=None)
        self._layers: dict[str, TaskID] = {}
        self._step = ""
        self._root: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, boxlite.ConvertProgress):
            self._show_root(event)
        elif (text := layer_text(event)) is not None:
            self._end_beginning()
            if (task := self._layers.pop(event.digest, None)) is not None:
                self._progress.remove_task(task)
            self._progress.console.print(text, markup=False, highlight=False)
        elif event.kind == "layer" and event.state == "downloading":
            self._end_beginning()
            self._show_layer(event)

    def _show_layer(self, event: boxlite.PullProgress) -> None:
        task = self._layers.get(event.digest)
        if task is None:
            # What an earlier download left is no part of how fast this one is.
            self._layers[event.digest] = self._progress.add_task(
                f"layer {short_digest(event.digest)}",
                completed=event.done_bytes,
                total=event.total_bytes,
            )
        else:
            self._progress.update(task, completed=event.done_bytes)

    def _show_root(self, event: boxlite.ConvertProgress) -> None:
        self._end_beginning()
        step = step_text(event)
        if self._root is None or self._step != step:
            if self._root is not None:
                self._progress.remove_task(self._root)
            self._step = step
            self._root = self._progress.add_task(step, total=event.total_bytes)
        self._progress.update(self._root, completed=event.done_bytes)

    def _end_beginning(self) -> None:
        if self._beginning is not None:
            self._progress.remove_task(self._beginning)
            self._beginning = None
