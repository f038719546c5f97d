"""What a command costs in a box that is started, and who pays."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import boxlite
from boxlite._layout import BoxLayout
from boxlite._process import read_pid_file

if TYPE_CHECKING:
    from .harness import Series

_WARM_UP = 5


def _cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have had of the processors (proc(5), schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


async def commands(rounds: int) -> Series:
    """Measure round trips over the session that a box has open."""
    series: Series = {
        "ping (baseline)": [],
        "true": [],
        "true: processor time of QEMU, guest included": [],
        "true: processor time of this program": [],
        "python3 -c pass": [],
    }
    ping, true, guest, host, python = series.values()
    async with boxlite.open_runtime() as runtime, runtime.open_box(ready_timeout=120) as box:
        vm = read_pid_file(BoxLayout(runtime.home.box(box.id).root).vm_pid)
        assert vm is not None
        for number in range(rounds + _WARM_UP):
            measured = number >= _WARM_UP
            began = perf_counter()
            await box.ping()
            if measured:
                ping.append(perf_counter() - began)
            began, theirs, ours = perf_counter(), _cpu_seconds(vm.pid), process_time()
            await box.run(["/bin/true"], check=True)
            if measured:
                true.append(perf_counter() - began)
                guest.append(_cpu_seconds(vm.pid) - theirs)
                host.append(process_time() - ours)
            began = perf_counter()
            await box.run(["python3", "-c", "pass"], check=True)
            if measured:
                python.append(perf_counter() - began)
    return series
