"""``boxlite doctor`` and ``boxlite prepare``: what a machine has, and getting what it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

import boxlite
from boxlite._kit import fetch_kernel, prepare_kit
from boxlite._layout import HomeLayout
from boxlite._preflight import Check, preflight, run_checks

if TYPE_CHECKING:
    from collections.abc import Sequence


def home_of(options: boxlite.RuntimeOptions) -> HomeLayout:
    """Return the layout of the home that the options name."""
    return HomeLayout(options.home)


async def doctor(changes: dict[str, object]) -> int:
    """Print every check; return 0 when a box can run here."""
    options = boxlite.RuntimeOptions(**changes)  # type: ignore[arg-type]
    checks = await run_checks(
        home=home_of(options),
        qemu=options.qemu,
        kernel=options.kernel,
        accelerator=options.accelerator,
        memory_mib=boxlite.BoxOptions().memory_mib,
    )
    console = Console(highlight=False)
    console.print(checks_table(checks))
    able = all(check.ok for check in checks if check.required)
    console.print("A box can run here." if able else "[red]A box cannot run here yet.[/red]")
    return 0 if able else 1


async def prepare(changes: dict[str, object]) -> int:
    """Get the kernel and build the guest kit into the home."""
    console = Console(highlight=False, stderr=True)
    async with boxlite.open_runtime(**changes) as runtime:
        options = runtime.options
        found = await preflight(
            home=runtime.home,
            qemu=options.qemu,
            kernel=options.kernel,
            accelerator=options.accelerator,
            memory_mib=boxlite.BoxOptions().memory_mib,
        )
        kernel = found.kernel
        if kernel is None:
            with console.status("downloading a kernel package"):
                kernel = await fetch_kernel(runtime.home)
        with console.status("building the guest's root file system"):
            kit = await prepare_kit(runtime.home, kernel)
    console.print(f"kernel {kernel.release}: {kernel.image}\ninitramfs: {kit.initramfs}")
    return 0


def checks_table(checks: Sequence[Check]) -> Table:
    """Return the checks as a table; a failed one has its fix beneath what was found."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    for check in checks:
        if check.ok:
            mark = Text("ok", style="green")
        elif check.required:
            mark = Text("missing", style="bold red")
        else:
            mark = Text("note", style="yellow")
        said = Text(check.found)
        if check.fix and not check.ok:
            said.append(f"\n{check.fix}", style="italic")
        table.add_row(mark, check.name, said)
    return table
