"""A box on its way up, and the nursery and the undoing that go with it."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from boxlite._scopes import open_nursery_unwrapped

from .crash import Circumstances
from .pipeline import StageLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import trio

    from boxlite._kit import GuestKit
    from boxlite._layout import BoxLayout, HomeLayout
    from boxlite._options import BoxOptions, RuntimeOptions
    from boxlite._preflight import Preflight
    from boxlite._rpc.session import GuestSession
    from boxlite._vm.shim import Shim
    from boxlite._vm.template import Template, TemplateDraft

    from .groundwork import Groundwork
    from .machine import Machine
    from .pipeline import StageEvent
    from .ready import ReadySocket


@attrs.define(kw_only=True)
class Startup:
    """A box on its way up: what it is to be, and what has been made of it so far.

    Args:
        box_id: The box's id.
        options: What the box is to be.
        runtime: What holds for every box of its runtime.
        home: Where the runtime keeps things.
        groundwork: What the boxes of the runtime share.
        nursery: The box's own nursery.
        undo: Undoes what was made; entered outside the nursery.
        log: Records the stages.
        keep_evidence: The box has failed: the files that explain it must stay.
        nonce: What this start's ready announcement must carry.
    """

    box_id: str
    options: BoxOptions
    runtime: RuntimeOptions
    home: HomeLayout
    groundwork: Groundwork
    nursery: trio.Nursery
    undo: AsyncExitStack
    log: StageLog
    nonce: str = attrs.field(factory=lambda: secrets.token_hex(16))

    host: Preflight = attrs.field(init=False)
    kit: GuestKit = attrs.field(init=False)
    machine: Machine = attrs.field(init=False)
    template: Template | None = attrs.field(default=None, init=False)
    draft: TemplateDraft | None = attrs.field(default=None, init=False)
    listener: ReadySocket = attrs.field(init=False)
    shim: Shim = attrs.field(init=False)
    keep_evidence: bool = attrs.field(default=False, init=False)
    session: GuestSession = attrs.field(init=False)

    @property
    def layout(self) -> BoxLayout:
        """Where the box's files are."""
        return self.home.box(self.box_id)

    def circumstances(self) -> Circumstances:
        """Return what a report should say of the box at this moment."""
        return Circumstances(
            box_id=self.box_id,
            layout=self.layout,
            argv=self.shim.argv,
            timings=tuple(self.log.timings),
            stage=", ".join(self.log.under_way),
            template="" if self.template is None else self.template.key,
        )


@asynccontextmanager
async def open_startup(
    box_id: str,
    *,
    options: BoxOptions,
    runtime: RuntimeOptions,
    home: HomeLayout,
    groundwork: Groundwork,
    listener: Callable[[StageEvent], object] | None = None,
) -> AsyncIterator[Startup]:
    """Give a box that is nothing yet; when the block has ended, undo what there is of it.

    The nursery of the box is open around the block, and its tasks end with it.

    Args:
        box_id: The box's id.
        options: What the box is to be.
        runtime: What holds for every box of its runtime.
        home: Where the runtime keeps things.
        groundwork: What the boxes of the runtime share.
        listener: Told every event of the start.
    """
    async with AsyncExitStack() as undo, open_nursery_unwrapped() as nursery:
        yield Startup(
            box_id=box_id,
            options=options,
            runtime=runtime,
            home=home,
            groundwork=groundwork,
            nursery=nursery,
            undo=undo,
            log=StageLog(box_id=box_id, listener=listener),
        )
        nursery.cancel_scope.cancel()
