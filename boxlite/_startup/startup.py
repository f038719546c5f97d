"""A box on its way up, and the nursery and the undoing that go with it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from secrets import token_hex
from typing import TYPE_CHECKING

import attrs

from boxlite._scopes import open_nursery_unwrapped
from boxlite._secrets import Secrets
from boxlite._state import BoxState, Lifecycle, may_follow
from boxlite._vm.devices import DeviceFiles

from .crash import Circumstances
from .pipeline import StageLog, run_stages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import trio

    from boxlite._images.image import Image
    from boxlite._kit import GuestKit
    from boxlite._layout import BoxLayout, HomeLayout
    from boxlite._options import BoxOptions, RuntimeOptions
    from boxlite._preflight import Preflight
    from boxlite._rpc.session import GuestSession
    from boxlite._vm.shim import Shim
    from boxlite._vm.template import Template, TemplateDraft

    from .groundwork import Groundwork
    from .machine import Machine
    from .pipeline import Stage, StageEvent, Together
    from .ready import ReadySocket
    from .volumes import OpenVolume


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
        lifecycle: The state of the box.
        secrets: What no report on it may show.
        keep_evidence: The box has failed: the files that explain it must stay.
        stays: The VM is to run on when this is over.
        again: The box was there before, with a disk.
        has_run: It has been running.
        oom_kills: How many processes of ours the kernel had killed for memory before.
        argv: QEMU's command line, once there is one.
        nonce: What this start's ready announcement must carry, and what its guest knows
            its hosts by.
    """

    box_id: str
    options: BoxOptions
    runtime: RuntimeOptions
    home: HomeLayout
    groundwork: Groundwork
    nursery: trio.Nursery
    undo: AsyncExitStack
    log: StageLog
    nonce: str = attrs.field(factory=lambda: token_hex(16))

    lifecycle: Lifecycle = attrs.field(factory=Lifecycle, init=False)
    secrets: Secrets = attrs.field(init=False)
    keep_evidence: bool = attrs.field(default=False, init=False)
    stays: bool = attrs.field(default=False, init=False)
    again: bool = attrs.field(default=False, init=False)
    has_run: bool = attrs.field(default=False, init=False)
    oom_kills: int | None = attrs.field(default=None, init=False)
    argv: Sequence[str] = attrs.field(default=(), init=False)

    host: Preflight = attrs.field(init=False)
    kit: GuestKit = attrs.field(init=False)
    machine: Machine = attrs.field(init=False)
    template: Template | None = attrs.field(default=None, init=False)
    draft: TemplateDraft | None = attrs.field(default=None, init=False)
    image: Image | None = attrs.field(default=None, init=False)
    volumes: Sequence[OpenVolume] = attrs.field(default=(), init=False)
    devices: DeviceFiles = attrs.field(factory=DeviceFiles, init=False)
    listener: ReadySocket = attrs.field(init=False)
    shim: Shim = attrs.field(init=False)
    session: GuestSession = attrs.field(init=False)

    @secrets.default
    def _values_of_environment(self) -> Secrets:
        return Secrets(value for _, value in self.options.env)

    @property
    def layout(self) -> BoxLayout:
        """Where the box's files are."""
        return self.home.box(self.box_id)

    def circumstances(self) -> Circumstances:
        """Return what a report should say of the box at this moment."""
        return Circumstances(
            box_id=self.box_id,
            layout=self.layout,
            argv=self.argv,
            timings=tuple(self.log.timings),
            under_way=self.log.so_far(),
            template="" if self.template is None else self.template.key,
            oom_kills=self.oom_kills,
            secrets=self.secrets,
        )

    async def bring_up(self, table: Sequence[Stage[Startup] | Together[Startup]]) -> None:
        """Run the stages of a table; then the box runs. The first failure is raised.

        Raises:
            BoxliteError: Whatever a stage raises.
        """
        self.lifecycle.advance(BoxState.STARTING, to="start the box")
        try:
            await run_stages(table, self, self.log)
        except Exception:
            self.lifecycle.fail()
            raise
        self.lifecycle.advance(BoxState.RUNNING, to="use the box")
        self.has_run = True
        self.stays = self.options.detach

    def fail(self) -> None:
        """Note that the box has no VM any more, or one that is of no use. Idempotent."""
        self.lifecycle.fail()
        self.keep_evidence = True
        self.stays = False

    def begin_stop(self) -> None:
        """Note that the box is being taken down, unless it is to stay or has failed."""
        if not self.stays and may_follow(self.lifecycle.state, BoxState.STOPPING):
            self.lifecycle.advance(BoxState.STOPPING, to="stop the box")

    def end_stop(self) -> None:
        """Note that nothing of the box is left, if it was being taken down."""
        if may_follow(self.lifecycle.state, BoxState.STOPPED):
            self.lifecycle.advance(BoxState.STOPPED, to="stop the box")


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
        start = Startup(
            box_id=box_id,
            options=options,
            runtime=runtime,
            home=home,
            groundwork=groundwork,
            nursery=nursery,
            undo=undo,
            log=StageLog(box_id=box_id, listener=listener),
        )
        undo.callback(start.end_stop)
        try:
            yield start
        finally:
            start.begin_stop()
        nursery.cancel_scope.cancel()
