"""A runtime: the owner of a home directory, and the maker of boxes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Unpack

import trio

from ._errors import HostError, InvalidOptionError, StateError
from ._images.images import Images
from ._images.reference import check_image_name
from ._layout import HomeLayout
from ._open_box import used_box
from ._options import (
    BUILTIN_IMAGE,
    BoxFields,
    BoxOptions,
    RuntimeFields,
    RuntimeOptions,
    options_from,
)
from ._ownership import owned, tidy
from ._pool import Pool
from ._preflight import prepare_home
from ._residents import Residents, new_id
from ._scopes import open_nursery_unwrapped
from ._startup.attach import BOX_ATTACH
from ._startup.directory import remove_directory
from ._startup.groundwork import Groundwork
from ._startup.pipeline import StageLog, run_stages
from ._startup.startup import open_startup
from ._startup.tables import BOX_START, TEMPLATE_PREPARATION
from ._vm.template import list_templates, remove_template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from ._box import Box
    from ._images.endpoints import RegistryOptions
    from ._startup.pipeline import StageEvent
    from ._startup.startup import Startup
    from ._vm.template import TemplateInfo

    _Timings = tuple[tuple[str, float], ...]

# Longer than the ladder that stops one box; boxes stop at the same time.
_CLOSE_SECONDS: Final = 60.0


class Runtime:
    """The owner of one home directory. Made by :func:`open_runtime`.

    Attributes:
        options: What it was asked to be.
        home: Where it keeps things.
        images: The images of the home.
    """

    def __init__(self, options: RuntimeOptions, registries: RegistryOptions | None = None) -> None:
        self.options = options
        self.home = HomeLayout(options.home)
        self._open: set[trio.CancelScope] = set()
        self._residents = Residents(self.home)
        self.images = Images(self.home, registries, kept=self._residents.roots)
        self._groundwork = Groundwork(self.home, options, self.images)
        warm = BoxOptions()
        self._pool = Pool(size=options.warm, start_box=lambda: self._new_box(warm), options=warm)
        self._closed = False
        self._all_closed = trio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._open)} boxes"
        return f"<boxlite.Runtime {self.options.home} {state}>"

    @asynccontextmanager
    async def open_box(
        self,
        options: BoxOptions | None = None,
        *,
        on_stage: Callable[[StageEvent], object] | None = None,
        **changes: Unpack[BoxFields],
    ) -> AsyncIterator[Box]:
        """Start a box, and stop it when the block ends.

        Entering it returns when the guest answers. Leaving it stops the box in
        order: the guest is asked, then signalled, then killed, each step
        bounded; when this returns, no process, descriptor, socket or directory
        of the box is left. Only a box that failed keeps the files that explain
        why, and the error names them.

        Cancelling it at any moment, start included, kills the VM at once and
        leaves nothing behind.

        An exception from the block comes out as it is. When the VM dies, the
        block is cancelled and one :class:`BoxCrashedError` comes out.

        Args:
            options: What the box is to be; or give its fields as keywords, or
                both, and the keywords win.
            on_stage: Called synchronously with every event of the start.
            changes: Fields of :class:`BoxOptions`.

        Raises:
            InvalidOptionError: An option is not allowed; nothing was made.
            HostError: This machine lacks something; nothing was made.
            BoxStartError: The box did not become ready.
            BoxCrashedError: The box died while the block ran.
            StateError: The runtime is closed, or was closed under the block.
        """
        wanted = _wanted(options, changes)
        if self._closed:
            raise StateError("open a box", required="an open runtime", actual="closed")
        async with (
            self._membership(),
            self._started(wanted, on_stage) as (start, timings),
            used_box(start, options=wanted, timings=timings) as box,
        ):
            yield box

    @asynccontextmanager
    async def attach(
        self, box_id: str, *, on_stage: Callable[[StageEvent], object] | None = None
    ) -> AsyncIterator[Box]:
        """Use a box that was opened with ``detach=True`` and runs on, here or in another program.

        Leaving the block leaves the box running, however the block ends; only
        :meth:`Box.stop` ends it. Cancelling it at any moment changes nothing
        about the box.

        Args:
            box_id: Its :attr:`Box.id`.
            on_stage: Called synchronously with every event.

        Raises:
            InvalidOptionError: The home has no box of that id.
            StateError: The box is not detached, or is open in this program already.
            BoxCrashedError: It does not run any more; the report says why.
            BoxStartError: It runs, and its guest does not answer.
            HostError: What it is has been written down by another version of boxlite.
        """
        if self._closed:
            raise StateError("attach to a box", required="an open runtime", actual="closed")
        record = self._residents.detached("attach to a box", box_id)
        options = record.options
        with self._residents.using(box_id):
            async with self._membership(), self._startup(options, on_stage, box_id=box_id) as start:
                start.nonce, start.image = record.nonce, record.image
                await start.bring_up(BOX_ATTACH)
                timings = tuple(start.log.timings)
                async with used_box(start, options=options, timings=timings) as box:
                    yield box

    @asynccontextmanager
    async def reopen_box(
        self,
        box_id: str,
        *,
        disk_size_gib: int | None = None,
        on_stage: Callable[[StageEvent], object] | None = None,
    ) -> AsyncIterator[Box]:
        """Start a box again that was kept, or died detached, with its disk as it was left.

        Otherwise like :meth:`open_box`; from now on it is kept, until it is removed. What was
        written and not yet on the disk when the VM was killed is lost, and the file system
        is whole.

        Args:
            box_id: Its :attr:`Box.id`.
            disk_size_gib: What its disk is to have from now on, in GiB, if it is more than
                it has. Default: as before.
            on_stage: Called synchronously with every event of the start.

        Raises:
            InvalidOptionError: The home has no such box, or the size is not allowed.
            StateError: It runs, is open in this program, or was not kept.
            HostError: What it is has been written down by another version of boxlite.
            Errors of :meth:`open_box`.
        """
        if self._closed:
            raise StateError("open a box again", required="an open runtime", actual="closed")
        record = self._residents.stopped("open a box again", box_id, with_disk=True)
        options = options_from(BoxOptions, record.options, {"keep": True})
        if disk_size_gib is not None:
            options = options_from(BoxOptions, options, {"disk_size_gib": disk_size_gib})
            if disk_size_gib < record.options.disk_size_gib:
                allowed = f"at least {record.options.disk_size_gib} (GiB), which it has"
                raise InvalidOptionError("disk_size_gib", disk_size_gib, allowed)
        with self._residents.using(box_id):
            async with self._membership(), self._startup(options, on_stage, box_id=box_id) as start:
                start.again = True
                start.image = record.image
                await start.bring_up(BOX_START)
                timings = tuple(start.log.timings)
                async with used_box(start, options=options, timings=timings) as box:
                    yield box

    async def remove_box(self, box_id: str) -> None:
        """Remove what is kept of a box that does not run. There is no way back.

        Args:
            box_id: Its :attr:`Box.id`.

        Raises:
            InvalidOptionError: The home has no such box.
            StateError: It runs, or is open in this program.
            HostError: It cannot be removed.
        """
        self._residents.stopped("remove a box", box_id, with_disk=False)
        with self._residents.using(box_id):
            layout = self.home.box(box_id)
            await trio.to_thread.run_sync(lambda: remove_directory(layout, keep_evidence=False))

    @asynccontextmanager
    async def _membership(self) -> AsyncIterator[None]:
        """Have the block end when the runtime is closed."""
        scope = trio.CancelScope()
        self._open.add(scope)
        try:
            with scope:
                yield
        finally:
            self._open.discard(scope)
            if self._closed and not self._open:
                self._all_closed.set()
        if scope.cancelled_caught:
            raise StateError("go on with a box", required="an open runtime", actual="closed")

    @property
    def warm_boxes(self) -> int:
        """How many boxes are ready and wait for somebody to open them."""
        return len(self._pool)

    async def wait_warm(self) -> None:
        """Return when as many boxes as ``RuntimeOptions.warm`` says are ready."""
        await self._pool.wait_full()

    @asynccontextmanager
    async def _started(
        self, wanted: BoxOptions, listener: Callable[[StageEvent], object] | None
    ) -> AsyncIterator[tuple[Startup, _Timings]]:
        """Give a box of the pool, or a new one, with what this took."""
        if (warm := self._pool.take(wanted)) is None:
            async with self._new_box(wanted, listener) as start:
                yield start, tuple(start.log.timings)
            return
        async with warm.use() as start:
            log = StageLog(box_id=start.box_id, listener=listener)
            with log.stage("handover"):
                await trio.lowlevel.checkpoint()
            yield start, tuple(log.timings)

    @asynccontextmanager
    async def _new_box(
        self, options: BoxOptions, listener: Callable[[StageEvent], object] | None = None
    ) -> AsyncIterator[Startup]:
        box_id = new_id()
        # Until nothing of it is left, or it was left running: then others may have it.
        with self._residents.using(box_id):
            async with self._startup(options, listener, box_id=box_id) as start:
                await start.bring_up(BOX_START)
                yield start

    def _startup(
        self,
        options: BoxOptions,
        listener: Callable[[StageEvent], object] | None,
        *,
        box_id: str,
    ) -> AbstractAsyncContextManager[Startup]:
        return open_startup(
            box_id,
            options=options,
            runtime=self.options,
            home=self.home,
            groundwork=self._groundwork,
            listener=listener,
        )

    async def prepare_template(
        self,
        options: BoxOptions | None = None,
        *,
        on_stage: Callable[[StageEvent], object] | None = None,
        **changes: Unpack[BoxFields],
    ) -> TemplateInfo:
        """Have the template of such a box ready: the one that is there, or one made now.

        Opening a box does the same when it has to. Cancelling it leaves no
        template, whole or half, and nothing else.

        Args:
            options: What a box of the template is to be: its CPUs and memory count.
            on_stage: Called synchronously with every event.
            changes: Fields of :class:`BoxOptions`.

        Raises:
            StateError: The runtime has no templates, or is closed.
            HostError: This machine lacks something, or the template was removed meanwhile.
            BoxStartError: The machine that was to become the template failed.
        """
        wanted = _wanted(options, changes)
        if self._closed or not self.options.templates:
            actual = "closed" if self._closed else "without templates"
            raise StateError("prepare a template", required="open, with templates", actual=actual)
        async with self._startup(wanted, on_stage, box_id=new_id()) as start:
            await run_stages(TEMPLATE_PREPARATION, start, start.log)
            assert start.template is not None
            key = start.template.key
        for info in await self.templates():
            if info.key == key:
                return info
        raise HostError(
            f"the template {key} was removed as soon as it was ready",
            fix="Something else removes templates of this home; try again.",
        )

    async def templates(self) -> list[TemplateInfo]:
        """Return the home's templates, the one that was used last first."""
        return await trio.to_thread.run_sync(list_templates, self.home)

    async def remove_template(self, key: str) -> bool:
        """Remove a template and tell whether there was one. Boxes that came from it go on.

        Args:
            key: As :meth:`templates` names it.

        Raises:
            HostError: It cannot be removed.
        """
        try:
            return await trio.to_thread.run_sync(remove_template, self.home, key)
        except OSError as exc:
            raise HostError(
                f"the template {key} cannot be removed: {exc}", fix="Check the rights there."
            ) from exc

    async def _close(self) -> None:
        """Close every box that another task still has open, and wait for that."""
        self._closed = True
        if not self._open:
            return
        for scope in self._open:
            scope.cancel()
        # The lock must not be given up while a VM of this home still runs.
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._all_closed.wait()


def _wanted(options: BoxOptions | None, changes: BoxFields) -> BoxOptions:
    """Return what a box is to be, all of it checked."""
    wanted = options_from(BoxOptions, options, changes)
    if wanted.image != BUILTIN_IMAGE:
        check_image_name(wanted.image)
    return wanted


@asynccontextmanager
async def open_runtime(
    options: RuntimeOptions | None = None,
    *,
    registries: RegistryOptions | None = None,
    **changes: Unpack[RuntimeFields],
) -> AsyncIterator[Runtime]:
    """Own a home directory while the block runs.

    Leaving the block closes the boxes that other tasks still have open.

    Args:
        options: What the runtime is to be; or give its fields as keywords, or
            both, and the keywords win.
        registries: How registries are dealt with. Default: without mirrors, and in plain
            HTTP on this machine alone.
        changes: Fields of :class:`RuntimeOptions`.

    Raises:
        InvalidOptionError: An option is not allowed.
        HostError: The home cannot be used.
        RuntimeInUseError: Another runtime, here or in another process, has it.
    """
    runtime = Runtime(options_from(RuntimeOptions, options, changes), registries)
    prepare_home(runtime.home)
    with owned(runtime.home):
        tidy(runtime.home)
        await trio.lowlevel.checkpoint()
        async with open_nursery_unwrapped() as nursery:
            nursery.start_soon(runtime._pool.run, name="warm boxes")  # noqa: SLF001
            try:
                yield runtime
            finally:
                await runtime._close()  # noqa: SLF001 - the other half of this function
                nursery.cancel_scope.cancel()
