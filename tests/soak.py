"""Random starts, kills and cancellations of real boxes: ``nox -s soak``.

Each round opens a box from a template, does one thing to it at a random moment, and
compares how the block ended with what may come of that. After each batch nothing may
be left: no process, descriptor, thread or directory. The summary counts the stories.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio
from census import Census

import boxlite
from boxlite import BoxState, CrashKind
from boxlite._process import ExitWatch, read_pid_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Nothing that a round does takes this long, on however busy a machine.
HANG_SECONDS: Final = 90.0
#: A start from a template with everything else idle takes half of this.
START_SECONDS: Final = 0.25
BATCH: Final = 50
AT_ONCE: Final = 3

#: What a block can end with: a story of a report, or one of these.
FINE, CANCELLED, OWN_ERROR, HANG = "fine", "cancelled", "own error", "HANG"


class OwnError(Exception):
    """The user's own."""


@attrs.define
class Round:
    """One box, and what happens to it.

    Attributes:
        runtime: What opens it.
        dice: Decides when.
        box_id: Known once it is being started.
    """

    runtime: boxlite.Runtime
    dice: random.Random
    box_id: str = ""
    begun: trio.Event = attrs.field(factory=trio.Event)

    def on_stage(self, event: boxlite.StageEvent) -> None:
        """Learn the id of the box."""
        self.box_id = event.box_id
        self.begun.set()

    async def kill(self, pid_file: str, number: signal.Signals) -> None:
        """Signal a process of the box at a random moment of its start or soon after."""
        await self.begun.wait()
        await trio.sleep(self.dice.random() * START_SECONDS)
        path = getattr(self.runtime.home.box(self.box_id), pid_file)
        while (process := read_pid_file(path)) is None:
            await trio.sleep(0.001)
        with ExitWatch.of(process) as watch:
            watch.send_signal(number)

    async def use(self, box: boxlite.Box) -> None:
        """Run something that takes a while; a guest that is shut down ends it, so once more."""
        while True:
            done = await box.run(["sleep", "60"])
            assert done.signal == signal.SIGTERM, done

    async def killed(self, pid_file: str, number: signal.Signals) -> str:
        """Have it killed while it starts or runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.kill, pid_file, number)
            async with self.runtime.open_box(on_stage=self.on_stage) as box:
                await self.use(box)
        return FINE

    async def leave(self) -> str:
        """Use it in the ordinary way."""
        async with self.runtime.open_box() as box:
            done = await box.run(["sh", "-c", "echo $((6 * 7))"])
            assert done.stdout == b"42\n"
        assert box.state is BoxState.STOPPED
        return FINE

    async def cancel(self) -> str:
        """Cancel it while it starts or runs."""
        with trio.move_on_after(self.dice.random() * START_SECONDS) as scope:
            async with self.runtime.open_box() as box:
                await self.use(box)
        assert scope.cancelled_caught
        return CANCELLED

    async def fail(self) -> str:
        """Leave the block with an error."""
        async with self.runtime.open_box():
            raise OwnError

    async def be_late(self) -> str:
        """Give the guest too little time, perhaps."""
        seconds = 0.001 + self.dice.random() * START_SECONDS
        async with self.runtime.open_box(ready_timeout=seconds):
            return FINE

    async def panic(self) -> str:
        """Crash the guest's kernel."""
        async with self.runtime.open_box() as box:
            await box.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"])
        return FINE

    async def power_off(self) -> str:
        """Have the guest power off."""
        async with self.runtime.open_box() as box:
            await box.run(["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"])
        return FINE

    async def detach(self) -> str:
        """Leave it running, find it again, and stop it."""
        async with self.runtime.open_box(detach=True) as box:
            await box.run(["sh", "-c", "echo here > /tmp/note"])
        assert box.state is BoxState.RUNNING
        async with self.runtime.attach(box.id) as box:
            done = await box.run(["cat", "/tmp/note"])
            assert done.stdout == b"here\n"
            await box.stop()
        assert box.state is BoxState.STOPPED
        return FINE


def _killing(pid_file: str, number: signal.Signals) -> Callable[[Round], Awaitable[str]]:
    return lambda it: it.killed(pid_file, number)


#: What is done, how often of a hundred times, and what may come of it.
ACTIONS: Final[dict[str, tuple[int, Callable[[Round], Awaitable[str]], set[str]]]] = {
    "used": (14, Round.leave, {FINE}),
    "cancelled": (14, Round.cancel, {CANCELLED}),
    "user's error": (5, Round.fail, {OWN_ERROR}),
    "VM killed": (20, _killing("vm_pid", signal.SIGKILL), {"signal: SIGKILL"}),
    "VM faulted": (8, _killing("vm_pid", signal.SIGSEGV), {"signal: SIGSEGV"}),
    "shim killed": (14, _killing("shim_pid", signal.SIGKILL), {"shim_lost: SIGKILL"}),
    # Before its first line has run, the shim has no handler for it yet.
    "shim stopped": (8, _killing("shim_pid", signal.SIGTERM), {"stopped", "shim_lost: SIGTERM"}),
    "late": (7, Round.be_late, {"timeout", FINE}),
    "kernel panic": (3, Round.panic, {"kernel_panic"}),
    "powered off": (3, Round.power_off, {"guest_exit"}),
    "detached": (4, Round.detach, {FINE}),
}


def story_of(report: boxlite.CrashReport) -> str:
    """Return a report in two words."""
    if report.kind in {CrashKind.SIGNAL, CrashKind.SHIM_LOST}:
        return f"{report.kind.value}: {report.headline.rpartition(' ')[2]}"
    return str(report.kind.value)


async def play(action: str, it: Round) -> tuple[str, str]:
    """Play one round and return how it ended, with the evidence."""
    _, function, _ = ACTIONS[action]
    try:
        with trio.fail_after(HANG_SECONDS):
            return await function(it), ""
    except trio.TooSlowError:
        return HANG, it.box_id
    except Exception as exc:  # noqa: BLE001 - counted, and shown when it is a wrong one
        leaf: BaseException = exc
        while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
            leaf = leaf.exceptions[0]
        if isinstance(leaf, OwnError):
            return OWN_ERROR, ""
        if isinstance(leaf, (boxlite.BoxStartError, boxlite.BoxCrashedError)):
            shutil.rmtree(dict(leaf.report.files)["console"].parent)
            return story_of(leaf.report), str(leaf)
        return type(leaf).__name__, "".join(traceback.format_exception(exc))


async def soak(rounds: int, seed: int, home: Path) -> bool:
    """Play the rounds, print the summary, and return whether all went well."""
    dice = random.Random(seed)
    names, weights = list(ACTIONS), [weight for weight, _, _ in ACTIONS.values()]
    stories: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    leaks: list[str] = []
    began = time.perf_counter()
    async with boxlite.open_runtime(home=home) as runtime:
        await runtime.prepare_template()
        # The first box imports the session, which opens descriptors for good.
        await Round(runtime, dice).leave()
        before = Census.take(home)
        for first in range(0, rounds, BATCH):
            queue = dice.choices(names, weights, k=min(BATCH, rounds - first))

            async def work(queue: list[str] = queue) -> None:
                while queue:
                    action = queue.pop()
                    ended, evidence = await play(action, Round(runtime, dice))
                    stories[action, ended] += 1
                    if ended not in ACTIONS[action][2]:
                        wrong.append(f"{action}: {ended}\n{evidence}")

            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(work)
            if (after := Census.take(home)) != before:
                leaks.append(f"after {first + BATCH} rounds:\n  {before}\n  {after}")
                before = after
            print(f"{min(first + BATCH, rounds)} rounds, {time.perf_counter() - began:.0f} s")
    hangs = sum(count for (_, ended), count in stories.items() if ended == HANG)
    print(f"\n{'what was done':16}{'how it ended':24}{'times':>6}")
    for (action, ended), count in sorted(stories.items()):
        print(f"{action:16}{ended:24}{count:6}")
    for text in [*wrong, *leaks]:
        print(f"\n{text}", file=sys.stderr)
    print(
        f"\n{sum(stories.values())} rounds in {time.perf_counter() - began:.0f} s, seed {seed}:"
        f" {len(leaks)} leaks, {hangs} hangs, {len(wrong) - hangs} wrong stories"
    )
    return not (wrong or leaks)


def main() -> int:
    """Read the arguments and soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--home", type=Path, help="a home with a guest kit, to save building one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = arguments.home or Path(directory) / "home"
        return 0 if trio.run(soak, arguments.rounds, arguments.seed, home) else 1


if __name__ == "__main__":
    sys.exit(main())
