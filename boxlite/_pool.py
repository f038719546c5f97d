"""Boxes that are started before anybody wants them.

A pool box is a task in the runtime's nursery, with the box's own nursery inside
it. Whoever takes the box runs his block in his own task; when that is over, the
pool's task takes the box down, and the taker waits for it.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from ._command import check_command
from ._errors import BoxliteError, ExecStartError
from ._scopes import open_nursery_unwrapped
from ._vm.shim import KILL_SECONDS, TERM_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from ._options import BoxOptions
    from ._startup.startup import Startup

    StartBox = Callable[[], AbstractAsyncContextManager[Startup]]

_log = logging.getLogger("boxlite")

#: How long the pool rests after a start that failed, doubling each time.
REST_SECONDS: Final = 1.0
REST_SECONDS_MAX: Final = 60.0
_WARM_UP_SECONDS: Final = 10.0
# Longer than taking a box down may last.
_GONE_SECONDS: Final = TERM_SECONDS + KILL_SECONDS + 2.0


class PoolBox:
    """A box that is ready, and belongs to nobody yet.

    Attributes:
        taken: Somebody has it.

    Args:
        start: The started box.
        scope: Around all of it: cancelling it kills the VM instead of asking it to stop.
    """

    def __init__(self, start: Startup, scope: trio.CancelScope) -> None:
        self.taken = False
        self._start = start
        self._scope = scope
        self._over = trio.Event()
        self._gone = trio.Event()
        self._failure: BoxliteError | None = None

    def has_died(self) -> bool:
        """Tell whether its VM is gone."""
        return self._start.shim.watch.has_ended()

    async def keep(self) -> None:
        """Return when the box is to be taken down: its taker is done, or it died before."""
        async with open_nursery_unwrapped() as nursery:

            async def see_death() -> None:
                await self._start.shim.watch.wait()
                if not self.taken:
                    self._start.fail()
                    _log.warning("the warm box %s died before it was used", self._start.box_id)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(see_death)
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def gone(self, failure: BoxliteError | None) -> None:
        """Tell the taker that nothing of the box is left, or what is wrong with that."""
        self._failure = failure
        self._gone.set()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Startup]:
        """Have the box; when the block has ended, nothing of it is left.

        An error or a cancellation that leaves the block kills the VM at once.

        Raises:
            HostError: A process is still there after SIGKILL.
        """
        try:
            yield self._start
        except BaseException:
            self._scope.cancel()
            raise
        finally:
            self._over.set()
            # Without the shield a cancelled taker would be gone before its VM is.
            with trio.move_on_after(_GONE_SECONDS, shield=True):
                await self._gone.wait()
        if self._failure is not None:
            raise self._failure


class Pool:
    """Keeps boxes ready.

    Args:
        size: How many.
        start_box: Starts one, for as long as its block lasts.
        options: What the boxes are.
    """

    def __init__(self, *, size: int, start_box: StartBox, options: BoxOptions) -> None:
        self._size = size
        self._start_box = start_box
        self._options = options
        self._ready: deque[PoolBox] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self, options: BoxOptions) -> PoolBox | None:
        """Return a box that will do for these options, if one is ready. No checkpoint."""
        if _machine(options) != _machine(self._options):
            return None
        while self._ready:
            box = self._ready.popleft()
            self._changed.unpark_all()
            if not box.has_died():
                box.taken = True
                return box
        return None

    async def wait_full(self) -> None:
        """Return when all the boxes are ready."""
        await trio.lowlevel.checkpoint()
        while len(self._ready) < self._size:
            await self._changed.park()

    async def run(self) -> None:
        """Keep the pool full, until cancelled.

        A start that fails is logged and tried again after a rest: whoever opens
        a box meanwhile starts it himself, and gets the error that has its reason.
        """
        rest = REST_SECONDS
        async with open_nursery_unwrapped() as nursery:
            while True:
                while len(self._ready) >= self._size:
                    await self._changed.park()
                try:
                    await nursery.start(self._keep_box, name="warm box")
                    rest = REST_SECONDS
                except BoxliteError as exc:
                    _log.warning("a warm box could not be started: %s", exc)
                    await trio.sleep(rest)
                    rest = min(2 * rest, REST_SECONDS_MAX)

    async def _keep_box(self, *, task_status: trio.TaskStatus[None]) -> None:
        box: PoolBox | None = None
        failure: BoxliteError | None = None
        try:
            with trio.CancelScope() as scope:
                async with self._start_box() as start:
                    await _warm_up(start)
                    box = PoolBox(start, scope)
                    self._ready.append(box)
                    self._changed.unpark_all()
                    task_status.started()
                    await box.keep()
        except BoxliteError as exc:
            # Before the box was ready, the error is the pool's; afterwards, its taker's.
            if box is None:
                raise
            failure = exc
            if not box.taken:
                _log.warning("a warm box could not be taken down: %s", exc)
        finally:
            if box is not None:
                if box in self._ready:
                    self._ready.remove(box)
                    self._changed.unpark_all()
                box.gone(failure)


async def _warm_up(start: Startup) -> None:
    """Run a command: under emulation the first one takes six times as long as the next."""
    command = check_command(["true"], env=None, cwd="/", terminal=None, beneath=())
    try:
        with trio.move_on_after(_WARM_UP_SECONDS):
            async with start.session.execute(command) as execution:
                await execution.wait_started()
                await execution.wait()
    except ExecStartError:
        return  # An image without it; most of the way there is warm all the same.


def _machine(options: BoxOptions) -> tuple[object, ...]:
    """Return what a started box cannot change any more."""
    return options.image, options.cpus, options.memory_mib, options.detach
