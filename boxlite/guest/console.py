"""What the agent says on the console, which the host keeps as ``console.log``.

There is no logging package behind it: a crash report looks for these lines, so
their form is part of the contract, and PID 1 has nobody else to tell.
"""

from __future__ import annotations

import sys
import time
import traceback

from boxlite._wire import AGENT_CONSOLE_MARK


def log(message: str) -> None:
    """Write one line: how long the kernel has been up, and what happened.

    Args:
        message: One sentence. Text from outside belongs in it as ``repr()``, so
            that it can neither break the line nor forge another.
    """
    milliseconds = time.monotonic_ns() // 1_000_000
    print(f"{AGENT_CONSOLE_MARK} T+{milliseconds}ms: {message}", flush=True)


def panic(error: BaseException) -> None:
    """Write the traceback of an error that ends the box, then one line naming it."""
    traceback.print_exception(error)
    sys.stderr.flush()
    first_line = str(error).partition("\n")[0]
    print(f"{AGENT_CONSOLE_MARK} panic: {type(error).__name__}: {first_line}", flush=True)
