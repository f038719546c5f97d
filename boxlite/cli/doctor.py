"""``boxlite doctor``: what a machine has, and what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

import boxlite
from boxlite._preflight import Check, Wanted, run_checks

if TYPE_CHECKING:
    from collections.abc import Sequence


async def doctor(options: boxlite.RuntimeOptions) -> int:
    """Print every check; return 0 when a box can run here."""
    console = Console(highlight=False)
    able = await show_checks(console, options)
    console.print("A box can run here." if able else "[red]A box cannot run here yet.[/red]")
    return 0 if able else 1


async def show_checks(console: Console, options: boxlite.RuntimeOptions) -> bool:
    """Print every check; tell whether a box can run here."""
    memory_mib = boxlite.BoxOptions().memory_mib
    checks = await run_checks(Wanted.by(options, memory_mib=memory_mib))
    console.print(_checks_table(checks))
    return all(check.ok for check in checks if check.required)


def _checks_table(checks: Sequence[Check]) -> Table:
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
