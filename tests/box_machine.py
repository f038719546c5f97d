"""A model of what users do to boxes, played by hypothesis over an engine.

Every rule is one thing that a program or the world does to a box; after each, the
box must be in the state that the model says, its block must have ended in the way
that the model says, and the home must hold exactly what the model says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from hypothesis import event, strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)
from loop_thread import LoopThread

import boxlite
from boxlite import BoxState

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

#: What is left of a box that died in somebody's block.
_EVIDENCE: Final = {"exit", "shim.stderr", "console.log", "console.log.old"}
#: What leaves a block that the user ends with an error of his own.
_OWN_ERROR: Final = KeyError("the user's own")


class World(LoopThread):
    """A runtime; subclasses say over which engine."""

    async def kill(self, box_id: str, what: str) -> None:
        """End the VM (``"vm"``) or the shim (``"shim"``) of a box, as somebody else would."""
        raise NotImplementedError

    def living(self) -> int:
        """Return how many boxes have a VM."""
        raise NotImplementedError


class Holder:
    """A task that holds a box open, and what became of it.

    Attributes:
        box: The box.
        detached: It outlives its block.
        stopped: The user has called ``stop()``.
        error: What left the block.
    """

    box: boxlite.Box

    def __init__(self, *, detached: bool) -> None:
        self.detached = detached
        self.stopped = False
        self.error: Exception | None = None
        self._leave = trio.Event()
        self._raises: Exception | None = None
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    async def hold(
        self,
        opened: AbstractAsyncContextManager[boxlite.Box],
        *,
        task_status: trio.TaskStatus[Holder],
    ) -> None:
        """Hold the box until told otherwise."""
        try:
            with self._scope:
                async with opened as self.box:
                    task_status.started(self)
                    await self._leave.wait()
                    if self._raises is not None:
                        raise self._raises
        except Exception as exc:  # noqa: BLE001 - what it is, is what is tested
            self.error = exc
        finally:
            self._over.set()

    async def leave(self, error: Exception | None = None, *, cancel: bool = False) -> None:
        """End the block, and return when it has ended."""
        self._raises = error
        if cancel:
            self._scope.cancel()
        self._leave.set()
        await self._over.wait()

    async def over(self) -> None:
        """Return when the block has ended."""
        await self._over.wait()


class BoxMachine(RuleBasedStateMachine):
    """The rules. Subclasses make the world."""

    holders: Bundle[Holder] = Bundle("holders")
    left: Bundle[str] = Bundle("left")

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world()
        self.open: list[Holder] = []
        self.running: set[str] = set()
        self.failed: set[str] = set()

    def make_world(self) -> World:
        """Return a new world."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close everything; detached boxes are stopped first, for nobody will come for them."""
        for box_id in sorted(self.running - {holder.box.id for holder in self.open}):
            self.world.play(self._stop_detached, box_id)
        for holder in self.open:
            if holder.detached and not holder.stopped:
                self.world.play(holder.box.stop)
        self.world.close()
        assert self.world.living() == 0

    async def _stop_detached(self, box_id: str) -> None:
        async with self.world.runtime.attach(box_id) as box:
            await box.stop()

    def _start(self, holder: Holder, opened: AbstractAsyncContextManager[boxlite.Box]) -> None:
        async def start() -> None:
            await self.world.nursery.start(holder.hold, opened)

        self.world.play(start)
        self.open.append(holder)
        self.running.add(holder.box.id)

    def _end(self, holder: Holder, expected: BoxState) -> None:
        self.open.remove(holder)
        assert holder.box.state is expected
        if expected is not BoxState.RUNNING:
            self.running.discard(holder.box.id)
        if expected is BoxState.FAILED:
            self.failed.add(holder.box.id)

    def _leave(self, holder: Holder) -> str:
        if holder in self.open:
            self.world.play(holder.leave)
            assert holder.error is None
            self._end(holder, self._expected(holder))
        return holder.box.id

    def _expected(self, holder: Holder) -> BoxState:
        stays = holder.detached and not holder.stopped
        return BoxState.RUNNING if stays else BoxState.STOPPED

    @rule(target=holders, detached=st.booleans())
    def open_box(self, *, detached: bool) -> Holder:
        """Open a box."""
        holder = Holder(detached=detached)
        self._start(holder, self.world.runtime.open_box(detach=detached, ready_timeout=100))
        return holder

    @rule(holder=holders)
    def run(self, holder: Holder) -> None:
        """Run a command, if the box takes one."""
        if holder not in self.open:
            return
        try:
            done = self.world.play(holder.box.run, ["true"])
        except boxlite.StateError:
            assert holder.stopped
        else:
            assert not holder.stopped
            assert done.exit_code == 0

    @rule(holder=holders)
    def stop(self, holder: Holder) -> None:
        """Stop the box in its block."""
        if holder not in self.open:
            return
        self.world.play(holder.box.stop)
        holder.stopped = True
        self.running.discard(holder.box.id)
        assert holder.box.state is BoxState.STOPPING

    @rule(target=left, holder=consumes(holders))
    def leave(self, holder: Holder) -> str:
        """Leave the block in the ordinary way."""
        return self._leave(holder)

    @rule(target=left, holder=consumes(holders))
    def fail(self, holder: Holder) -> str:
        """Leave the block with an error of one's own, which comes out as it is."""
        if holder in self.open:
            self.world.play(holder.leave, _OWN_ERROR)
            assert holder.error is _OWN_ERROR
            self._end(holder, self._expected(holder))
        return holder.box.id

    @rule(target=left, holder=consumes(holders))
    def cancel(self, holder: Holder) -> str:
        """Cancel the block."""
        if holder in self.open:
            self.world.play(lambda: holder.leave(cancel=True))
            assert holder.error is None
            self._end(holder, self._expected(holder))
        return holder.box.id

    @rule(target=left, holder=consumes(holders), what=st.sampled_from(["vm", "shim"]))
    def kill(self, holder: Holder, what: str) -> str:
        """Have somebody kill what runs the box: one error, with the right story."""
        if holder.stopped:
            return self._leave(holder)  # There is nothing of it left to kill.
        if holder in self.open:
            self.world.play(self.world.kill, holder.box.id, what)
            self.world.play(holder.over)
            assert isinstance(holder.error, boxlite.BoxCrashedError)
            kind = boxlite.CrashKind.SIGNAL if what == "vm" else boxlite.CrashKind.SHIM_LOST
            assert holder.error.report.kind is kind
            self._end(holder, BoxState.FAILED)
            root = self.world.runtime.home.boxes / holder.box.id
            assert {path.name for path in root.iterdir()} <= _EVIDENCE
            event(f"killed: {what}")
        return holder.box.id

    @rule(box_id=left, what=st.sampled_from(["vm", "shim"]))
    def kill_left(self, box_id: str, what: str) -> None:
        """Have somebody kill a box that was left running; attaching then tells of it."""
        if box_id not in self.running:
            return
        self.world.play(self.world.kill, box_id, what)
        self.running.discard(box_id)
        self.failed.add(box_id)
        self._see_failed(box_id)

    @rule(target=holders, box_id=consumes(left))
    def attach(self, box_id: str) -> Holder | MultipleResults[Holder]:
        """Attach to a box that was left; one that is gone says so."""
        holder = Holder(detached=True)
        if box_id in self.running:
            self._start(holder, self.world.runtime.attach(box_id))
            return holder
        if box_id in self.failed:
            self._see_failed(box_id)
        else:
            error = self.world.play(self._attach_fails, box_id)
            assert isinstance(error, boxlite.InvalidOptionError)
        return multiple()

    def _see_failed(self, box_id: str) -> None:
        error = self.world.play(self._attach_fails, box_id)
        assert isinstance(error, boxlite.BoxCrashedError)
        assert f"Box {box_id} cannot be attached to" in error.report.headline

    async def _attach_fails(self, box_id: str) -> boxlite.BoxliteError:
        try:
            async with self.world.runtime.attach(box_id):
                raise AssertionError("attached to a box that is gone")
        except boxlite.BoxliteError as exc:
            return exc

    @invariant()
    def the_home_holds_what_the_model_says(self) -> None:
        """Directories of the boxes that run or have failed, and of no other."""
        stopping = {holder.box.id for holder in self.open if holder.stopped}
        found = {path.name for path in self.world.runtime.home.boxes.iterdir()}
        assert found == self.running | self.failed | stopping
        assert self.world.living() == len(self.running)

    @invariant()
    def open_boxes_are_in_their_state(self) -> None:
        """Running, or stopped under their block."""
        for holder in self.open:
            expected = BoxState.STOPPING if holder.stopped else BoxState.RUNNING
            assert holder.box.state is expected
