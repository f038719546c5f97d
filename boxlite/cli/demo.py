"""The demo: what a box is good for, and what it says when it dies."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import boxlite
from boxlite._process import ExitWatch, read_pid_file

from .doctor import show_checks
from .progress import progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from boxlite._layout import BoxLayout

_PRIMES: Final = """
import time
found = []
n = 2
while len(found) < 8:
    if all(n % p for p in found):
        found.append(n)
        print(n, flush=True)
        time.sleep(0.1)
    n += 1
"""

_SPY: Final = """
import os
secret = os.environ["TARGET"]
try:
    print(open(secret).read())
except OSError as exc:
    print(f"{type(exc).__name__}: {exc.strerror}: {secret}")
print("processes that I see:", sum(name.isdigit() for name in os.listdir("/proc")))
"""

_Timings = list[tuple[str, tuple[tuple[str, float], ...]]]


async def demo(options: boxlite.RuntimeOptions) -> int:
    """Show everything, and return an exit code."""
    console = Console(highlight=False)
    console.print(Panel(Text("boxlite: untrusted code in real virtual machines"), expand=False))
    if not await show_checks(console, options):
        console.print("[red]This machine cannot run a box yet: see the fixes above.[/red]")
        return 1
    timings: _Timings = []
    async with boxlite.open_runtime(options) as runtime:
        async with _box(runtime, console, timings) as box:
            await _show_streaming(console, box)
            await _show_hostile(console, runtime, box)
        await _show_crash_while_running(console, runtime, timings)
    # A box that is restored is there before anybody could see it killed: this one boots.
    async with boxlite.open_runtime(options, templates=False) as runtime:
        await _show_crash_while_starting(console, runtime)
    console.print(_timing_table(timings))
    return 0


@asynccontextmanager
async def _box(
    runtime: boxlite.Runtime, console: Console, timings: _Timings
) -> AsyncIterator[boxlite.Box]:
    async with AsyncExitStack() as stack:
        with progress(console) as on_stage:
            box = await stack.enter_async_context(
                runtime.open_box(on_stage=on_stage, ready_timeout=120)
            )
        timings.append((box.id, box.timings))
        info = await box.info()
        total = sum(seconds for _, seconds in box.timings)
        console.print(
            f"\n[bold]Box {box.id}[/bold] is ready after {total:.2f} s:"
            f" Linux {info.kernel_release}, {info.memory_total_kib // 1024} MiB"
        )
        yield box


async def _show_streaming(console: Console, box: boxlite.Box) -> None:
    console.rule("output as it is made")
    async with box.exec(["python3", "-c", _PRIMES]) as execution:
        began = trio.current_time()
        async for chunk in execution.stdout:
            stamp = f"{trio.current_time() - began:6.2f} s"
            for line in chunk.decode(errors="replace").splitlines():
                console.print(f"  [dim]{stamp}[/dim]  {line}")


async def _show_hostile(console: Console, runtime: boxlite.Runtime, box: boxlite.Box) -> None:
    console.rule("code that means harm, or ends badly")
    secret = runtime.home.tmp / "secret"
    secret.write_text("the host's secret\n")

    spy = await box.run(["python3", "-c", _SPY], env={"TARGET": str(secret)})
    _say(console, "reads a file of the host", spy.stdout.decode(errors="replace"))
    gone = await box.run(["sh", "-c", "echo no good >&2; exit 3"])
    _say(console, "exits with 3", f"{gone.describe()}; stderr: {gone.stderr.decode()}")
    killed = await box.run(["sh", "-c", "kill -9 $$"])
    _say(console, "is killed", f"{killed.describe()}, exit code {killed.exit_code}")
    try:
        await box.run(["sh", "-c", "echo started; while :; do :; done"], timeout=2)
    except boxlite.CommandTimeoutError as exc:
        _say(console, "never ends", str(exc))
    try:
        await box.run(["no-such-program"])
    except boxlite.ExecStartError as exc:
        _say(console, "is not there", f"{exc} (exit code {exc.exit_code})")


def _say(console: Console, title: str, text: str) -> None:
    lines = text.rstrip().splitlines()
    console.print(f"  [bold]{title}[/bold]")
    for line in lines:
        console.print(Text(f"    {line}"))


async def _show_crash_while_running(
    console: Console, runtime: boxlite.Runtime, timings: _Timings
) -> None:
    console.rule("a guest that crashes its own kernel")
    try:
        async with _box(runtime, console, timings) as box:
            await box.run(["sh", "-c", "echo c > /proc/sysrq-trigger"])
    except boxlite.BoxCrashedError as exc:
        console.print(Panel(Text(str(exc)), title="BoxCrashedError", border_style="red"))


async def _show_crash_while_starting(console: Console, runtime: boxlite.Runtime) -> None:
    console.rule("a VM that is killed while it boots")
    booting = trio.Event()
    ids: list[str] = []

    def watch(event: boxlite.StageEvent) -> None:
        if (event.stage, event.what) == ("guest_ready", "began"):
            ids.append(event.box_id)
            booting.set()

    async def assassin() -> None:
        await booting.wait()
        await _kill_vm_once_it_speaks(runtime.home.box(ids[0]))

    try:
        with console.status("starting a box, and killing its VM"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(assassin)
                async with runtime.open_box(on_stage=watch):
                    nursery.cancel_scope.cancel()
    except* boxlite.BoxStartError as group:
        exc = group.exceptions[0]
        console.print(Panel(Text(str(exc)), title="BoxStartError", border_style="red"))


async def _kill_vm_once_it_speaks(layout: BoxLayout) -> None:
    # Both files are another process's to write, so there is nothing but to look.
    while not layout.console_log.exists() or layout.console_log.stat().st_size < 4096:  # noqa: ASYNC110
        await trio.sleep(0.01)
    vm = read_pid_file(layout.vm_pid)
    assert vm is not None
    with ExitWatch.of(vm) as watch:
        watch.send_signal(signal.SIGKILL)


def _timing_table(timings: _Timings) -> Table:
    table = Table(title="where the time of a start goes (seconds)")
    table.add_column("stage")
    for box_id, _ in timings:
        table.add_column(box_id, justify="right")
    stages = list(dict.fromkeys(name for _, stages in timings for name, _ in stages))
    columns = [dict(stages) for _, stages in timings]
    for stage in stages:
        table.add_row(stage, *(f"{column.get(stage, 0):.3f}" for column in columns))
    table.add_row("[bold]sum[/bold]", *(f"{sum(column.values()):.3f}" for column in columns))
    return table
