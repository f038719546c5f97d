"""The stages that find a box again that was left running.

Nothing is waited for that happens at a start only, and nothing is undone: whatever
goes wrong on this side is no reason to end somebody's box.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import (
    BoxCrashedError,
    BoxliteError,
    BoxStartError,
    GuestLostError,
    GuestProtocolError,
    GuestTimeoutError,
)
from boxlite._sockets import connect_unix
from boxlite._vm.shim import running_shim

from .crash import broken_guest_report, crash_report
from .pipeline import Stage, Together
from .stages import death_seen, end_shim, load_session_code, remove_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .startup import Startup

_RECONNECTS: Final = 5
_RECONNECT_SECONDS: Final = 0.1


async def find_shim(start: Startup) -> None:
    """Find the shim of the box, by its pid and its start time."""
    await trio.lowlevel.checkpoint()
    if (shim := running_shim(start.layout)) is None:
        about = start.circumstances()
        raise BoxCrashedError(crash_report(about, phase="attach", exit_code=None))
    start.shim = shim
    start.argv = shim.argv
    start.stays = True
    start.undo.callback(remove_box, start)
    start.undo.push_async_callback(end_shim, start)


async def reconnect_guest(start: Startup) -> None:
    """Open a session on the agent port that another program had, and may have left in mid-word."""
    session = importlib.import_module("boxlite._rpc.session")
    attempts = 0
    while True:
        attempts += 1
        try:
            stream = await connect_unix(start.layout.agent_sockets[0])
            start.session = await start.nursery.start(
                session.serve_session, stream, start.nonce, name="guest session"
            )
            await start.session.ping()
        except (GuestLostError, GuestProtocolError, OSError) as exc:
            # The first bytes can be the end of what was meant for the other program.
            if attempts == _RECONNECTS or start.shim.watch.has_ended():
                raise await _not_found(start, exc) from exc
            await trio.sleep(_RECONNECT_SECONDS)
        except GuestTimeoutError as exc:
            raise await _not_found(start, exc) from exc
        else:
            return


async def _not_found(start: Startup, error: Exception) -> BoxliteError:
    """Return the story of a box that was there and does not answer: dead by now, or alive."""
    if (report := await death_seen(start, phase="attach")) is not None:
        return BoxCrashedError(report)
    return BoxStartError(broken_guest_report(start.circumstances(), error, phase="attach"))


#: How a box is found again that was left running: there is no announcement to wait for.
BOX_ATTACH: Final[Sequence[Stage[Startup] | Together[Startup]]] = (
    Stage("shim", find_shim),
    Stage("session_code", load_session_code),
    Stage("guest_connect", reconnect_guest),
)
