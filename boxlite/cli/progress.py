"""What a start is doing, for somebody who waits for it at a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    import boxlite

_DOING: Final = {
    "preflight": "looking at this machine",
    "guest_kit": "building the guest's root file system",
    "image": "getting the image",
    "template": "making a machine ready, to start this and later boxes from it",
    "guest_ready": "waiting for the guest",
}


@contextmanager
def progress(console: Console) -> Iterator[Callable[[boxlite.StageEvent], None]]:
    """Show what is being done while the block lasts; nothing unless it is a terminal.

    Args:
        console: Where to show it.

    Returns:
        What is to be told the events of the start.
    """
    with console.status("starting") as status:

        def show(event: boxlite.StageEvent) -> None:
            if event.what == "began" and event.stage in _DOING:
                status.update(_DOING[event.stage])

        yield show
