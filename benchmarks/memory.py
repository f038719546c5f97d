"""What an idle box keeps for itself, which says how many of them a host holds."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import boxlite
from boxlite._layout import BoxLayout
from boxlite._process import read_pid_file

if TYPE_CHECKING:
    from .harness import Series

BOXES = 50
#: What is nobody else's: pages written, or mapped by this process alone, and swapped ones.
_PRIVATE = ("Private_Clean", "Private_Dirty", "Swap")
_IDLE_SECONDS = 1.0


def _private(pid: int) -> int:
    """Return a process's private bytes (proc(5), smaps_rollup)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name in _PRIVATE:
            total += int(amount.split()[0]) << 10
    return total


async def memory(rounds: int) -> Series:
    """Measure one box, and then fifty at once, all of which then answer a ping."""
    series: Series = {
        f"one of {BOXES} idle boxes (baseline)": [],
        "of that QEMU": [],
        "of that the shim": [],
        "one of them after a command": [],
        "the only box of a host": [],
        "template, on disk and in the page cache, shared": [],
    }
    both, vm, shim, used, only, shared = series.values()
    async with boxlite.open_runtime() as runtime:
        for _ in range(rounds):
            async with runtime.open_box(ready_timeout=120) as box:
                await trio.sleep(_IDLE_SECONDS)
                only.append(sum(_of_box(runtime, box)))
        shared.append((await runtime.prepare_template()).disk_bytes)
        async with AsyncExitStack() as stack:
            boxes = [
                await stack.enter_async_context(runtime.open_box(ready_timeout=120))
                for _ in range(BOXES)
            ]
            await trio.sleep(_IDLE_SECONDS)
            for box in boxes:
                first, second = _of_box(runtime, box)
                vm.append(first)
                shim.append(second)
                both.append(first + second)
            async with trio.open_nursery() as nursery:
                for box in boxes:
                    nursery.start_soon(_ping, box)
            for box in boxes[:rounds]:
                await box.run(["/bin/true"], check=True)
                used.append(sum(_of_box(runtime, box)))
    return series


async def _ping(box: boxlite.Box) -> None:
    await box.ping(timeout=60)


def _of_box(runtime: boxlite.Runtime, box: boxlite.Box) -> tuple[int, int]:
    vm = read_pid_file(BoxLayout(runtime.home.box(box.id).root).vm_pid)
    assert vm is not None
    return _private(vm.pid), _private(box.shim_pid)
