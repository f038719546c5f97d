"""Whether and how it is shown how far an image is, for somebody who waits for it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .image_lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from .image_lines import Event


@contextmanager
def image_progress(console: Console, what: str) -> Iterator[Callable[[Event], None] | None]:
    """Show how far images are while the block lasts.

    At a terminal it shows a bar for each layer that is coming and one for the root that is
    made of them; they are gone when the block ends, however it does. Elsewhere it shows a
    line for each thing that happened, and nothing at all on a console that is quiet.

    Args:
        console: Where to show it.
        what: What is done first, before there is anything to measure.

    Returns:
        What is to be told the events of ``Images``; None if nobody is.
    """
    if console.quiet:
        yield None
    # A terminal that cannot move its cursor would show every state of a bar.
    elif not console.is_interactive:
        lines = Lines(console)
        lines.say(what)
        yield lines
    else:
        from .image_bars import Bars, open_bars  # noqa: PLC0415 - slow, as it says

        with open_bars(console) as progress:
            yield Bars(progress, what)
