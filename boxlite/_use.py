"""The use of a started box: what holds from the moment somebody has it to the end of his block.

It watches over the VM, decides what a call that fails means, and takes the box down
in order. :class:`~boxlite.Box` is its face.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from ._errors import (
    BoxCrashedError,
    GuestError,
    GuestFailedError,
    GuestLostError,
    StateError,
)
from ._startup.crash import crash_report
from ._state import BoxState
from ._vm.shim import TERM_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._report import CrashReport
    from ._startup.startup import Startup

# A lost connection is nearly always the VM's death, seen a moment early.
_VERDICT_SECONDS: Final = 2.0
# What a guest answers that is about to power off.
_SHUTTING_DOWN: Final = "UNAVAILABLE"


class Use:
    """One use of a box.

    Attributes:
        start: The box.
        body: Around the user's block; cancelled when the VM dies.
        crash: Why the VM died, if it did.

    Args:
        start: The box; its nursery may belong to another task.
        stop_grace: Seconds that commands may take to end when it is stopped in order.
    """

    def __init__(self, start: Startup, *, stop_grace: float) -> None:
        self.start = start
        self.body = trio.CancelScope()
        self.crash: CrashReport | None = None
        self._stop_grace = stop_grace
        self._closed = False
        self._over = trio.Event()
        self._watching = trio.CancelScope()

    async def watch(self) -> None:
        """Wait for the VM's death; tell everyone who is concerned. A task of the box."""
        start = self.start
        with self._watching:
            await start.shim.watch.wait()
            if self._closed:
                return  # The block ended in the same tick, and nobody is there to be told.
            start.fail()
            about = start.circumstances()
            self.crash = crash_report(about, phase="run", exit_code=start.shim.reap())
            self._over.set()
            self.body.cancel()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Hold for every call to the guest: a loss that is the VM's death is told as such."""
        if self._closed:
            raise _not_open()
        try:
            yield
        except (GuestLostError, GuestFailedError) as exc:
            seconds = _VERDICT_SECONDS
            if isinstance(exc, GuestFailedError):
                if exc.status != _SHUTTING_DOWN:
                    raise
                # Somebody has told the shim to stop the VM, which takes it this long.
                seconds = TERM_SECONDS
            with trio.move_on_after(seconds):
                await self._over.wait()
            # Inside the block, the death has cancelled it by now, and that is
            # what the user's own nurseries should see: not one error per task.
            await trio.lowlevel.checkpoint()
            if self.crash is not None:
                raise BoxCrashedError(self.crash) from exc
            if self._closed:
                raise _not_open() from exc
            raise

    def close(self) -> None:
        """From here on the end of the VM is wanted, or nobody's business here."""
        self._closed = True
        self._over.set()
        self._watching.cancel()

    async def stop(self) -> None:
        """Stop the box while its block is open; see :meth:`Box.stop`."""
        if self.crash is not None:
            raise BoxCrashedError(self.crash)
        if self._closed:
            await self._see_stopped()
            return
        self.close()
        self.start.stays = False
        self.start.begin_stop()
        try:
            await self.ask_to_stop()
        finally:
            await self.start.shim.stop()

    async def _see_stopped(self) -> None:
        """Return when a box that was stopped before is; it must not have been left running."""
        await trio.lowlevel.checkpoint()
        state = self.start.lifecycle.state
        if state is BoxState.STOPPING:
            await self.start.shim.watch.wait()
        elif state is not BoxState.STOPPED:
            raise _not_open()

    async def end(self) -> None:
        """Have the guest power off, now that the block has ended, unless the box is to stay."""
        if self.start.lifecycle.state is BoxState.RUNNING and not self.start.stays:
            self.start.begin_stop()
            await self.ask_to_stop()

    async def ask_to_stop(self) -> None:
        """Ask the guest to end its commands and power off, and wait for that; bounded."""
        grace = self._stop_grace
        with trio.move_on_after(grace + _VERDICT_SECONDS):
            try:
                await self.start.session.shutdown(grace=grace, timeout=grace + _VERDICT_SECONDS)
            except GuestError:
                return  # The next rung of the ladder does not need the guest's consent.
            await self.start.shim.watch.wait()


def _not_open() -> StateError:
    return StateError("use the box", required="running", actual="closed")
