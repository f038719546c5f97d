"""The block in which a box is open.

A box is a nursery: the session with the guest and the watch over its VM are
tasks in it, the user's block runs in a cancel scope of it, and leaving the
block ends them all.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ._box import Box
from ._errors import BoxCrashedError, BoxliteError, GuestLostError
from ._use import Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._options import BoxOptions
    from ._startup.startup import Startup


@asynccontextmanager
async def used_box(
    start: Startup, *, options: BoxOptions, timings: tuple[tuple[str, float], ...]
) -> AsyncIterator[Box]:
    """Run the block with a started box; afterwards have its guest power off, unless it stays.

    Which error leaves it, when there are several to choose from:

    1. an exception from the block that is not about the guest's loss is the
       user's own, and wins; if the VM died too, a note on it says so;
    2. a VM that died during the block is one :class:`BoxCrashedError`;
    3. a lost connection to a living guest is a :class:`GuestLostError`.

    A cancellation from outside stays a cancellation.

    Args:
        start: The box; its nursery may belong to another task.
        options: What this user asked for.
        timings: What the start took, for this user.
    """
    use = Use(start, stop_grace=options.stop_grace)
    start.secrets.add(value for _, value in options.env)
    start.nursery.start_soon(use.watch, name="VM watch")
    lost: BoxliteError | None = None
    try:
        with use.body:
            yield Box(use, options=options, timings=timings)
    except (GuestLostError, BoxCrashedError) as exc:
        lost = exc
    except Exception as exc:
        if use.crash is not None:
            exc.add_note(f"the box died too: {use.crash.headline}")
        raise
    finally:
        use.close()
    if use.crash is not None:
        raise BoxCrashedError(use.crash) from lost
    if lost is not None:
        raise lost
    await use.end()
