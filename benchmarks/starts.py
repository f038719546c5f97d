"""How long it takes until a box is ready, and until its first command has ended."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

import boxlite

from . import floor, peers

if TYPE_CHECKING:
    from .harness import Series

#: Cold starts take fifty times as long as the others, and vary less.
_COLD_EVERY = 5
_READY_SECONDS = 120.0
PARALLEL = 20


async def _start(runtime: boxlite.Runtime) -> float:
    began = perf_counter()
    async with runtime.open_box(ready_timeout=_READY_SECONDS):
        return perf_counter() - began


async def _first_command(runtime: boxlite.Runtime) -> float:
    began = perf_counter()
    async with runtime.open_box(ready_timeout=_READY_SECONDS) as box:
        await box.run(["/bin/true"], check=True)
        return perf_counter() - began


async def _cold(options: boxlite.RuntimeOptions, rounds: int) -> list[float]:
    async with boxlite.open_runtime(options, templates=False) as runtime:
        return [await _start(runtime) for _ in range(rounds)]


async def _warm(
    options: boxlite.RuntimeOptions, rounds: int, samples: list[float], first: list[float]
) -> None:
    async with boxlite.open_runtime(options, warm=1) as runtime:
        for _ in range(rounds):
            await runtime.wait_warm()
            samples.append(await _start(runtime))
            await runtime.wait_warm()
            first.append(await _first_command(runtime))


async def starts(rounds: int) -> Series:
    """Measure every way of starting, and QEMU alone."""
    series: Series = {
        "floor: QEMU restored by a bare script (baseline)": [],
        "template start": [],
        "warm start": [],
        "cold start": [],
    }
    bare, template, warm, cold = series.values()
    options = boxlite.RuntimeOptions()
    async with boxlite.open_runtime(options) as runtime:
        machine = await floor.machine_of(runtime)
        await _start(runtime)  # imports what the session needs, once in a program's life
        for _ in range(rounds):
            bare.append(floor.start(runtime, machine))
            template.append(await _start(runtime))
    await _warm(options, rounds, warm, [])
    cold += await _cold(options, max(2, rounds // _COLD_EVERY))
    return series


async def first_command(rounds: int) -> Series:
    """Measure from nothing to the exit of ``true``, beside the peers."""
    series: Series = {
        "floor: QEMU restored by a bare script (baseline)": [],
        "template start and first command": [],
        "warm start and first command": [],
        "peer: gVisor, ptrace": [],
        "no VM: bubblewrap": [],
    }
    bare, template, warm, gvisor, bubblewrap = series.values()
    options = boxlite.RuntimeOptions()
    async with boxlite.open_runtime(options) as runtime:
        machine = await floor.machine_of(runtime)
        await _first_command(runtime)
        for _ in range(rounds):
            bare.append(floor.first_command(runtime, machine))
            template.append(await _first_command(runtime))
            gvisor += peers.seconds(peers.GVISOR)
            bubblewrap += peers.seconds(peers.BUBBLEWRAP)
    await _warm(options, rounds, [], warm)
    return series


async def stages(rounds: int) -> Series:
    """Measure each stage of a template start."""
    series: Series = {"open_box to ready (baseline)": []}
    async with boxlite.open_runtime() as runtime:
        await _start(runtime)
        for _ in range(rounds):
            began = perf_counter()
            async with runtime.open_box(ready_timeout=_READY_SECONDS) as box:
                series["open_box to ready (baseline)"].append(perf_counter() - began)
                for name, took in box.timings:
                    series.setdefault(f"stage {name}", []).append(took)
                for label in ("first", "second", "third"):
                    began = perf_counter()
                    await box.run(["/bin/true"], check=True)
                    series.setdefault(f"{label} command", []).append(perf_counter() - began)
                began = perf_counter()
            series.setdefault("stop", []).append(perf_counter() - began)
    return series


async def parallel(rounds: int) -> Series:
    """Measure twenty starts at once."""
    series: Series = {
        "one start (baseline)": [],
        f"{PARALLEL} starts at once, until the last is ready": [],
        f"{PARALLEL} starts at once, per box": [],
    }
    one, last, each = series.values()
    async with boxlite.open_runtime() as runtime:
        await _start(runtime)
        for _ in range(rounds):
            one.append(await _start(runtime))
            took = await _together(runtime)
            last.append(took)
            each.append(took / PARALLEL)
    return series


async def _together(runtime: boxlite.Runtime) -> float:
    ready = 0
    all_ready = trio.Event()

    async def hold() -> None:
        nonlocal ready
        async with runtime.open_box(ready_timeout=_READY_SECONDS):
            ready += 1
            if ready == PARALLEL:
                all_ready.set()
            await trio.sleep_forever()

    began = perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(PARALLEL):
            nursery.start_soon(hold)
        await all_ready.wait()
        took = perf_counter() - began
        nursery.cancel_scope.cancel()
    return took
