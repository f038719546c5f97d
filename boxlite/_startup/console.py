"""What the serial console tells about a guest that is no more.

The guest writes the console, so every byte of it may be a lie: a report says
"the console shows", never "it was".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._evidence import last_lines, printable, read_excerpt
from boxlite._wire import AGENT_CONSOLE_MARK, KERNEL_PANIC_MARK

if TYPE_CHECKING:
    from pathlib import Path

    from boxlite._secrets import Secrets

_TAIL_LINES: Final = 12
_LINE_CHARACTERS: Final = 300

# "[    4.251376] Kernel panic - not syncing: ..." under printk timestamps.
_PANIC = re.compile(re.escape(KERNEL_PANIC_MARK) + r"[^\n]*")
_OUT_OF_MEMORY = re.compile(r"(?:Out of memory: |Memory cgroup out of memory: )[^\n]*")
# What Linux says of an /init that it cannot execute, with the negated errno (init/main.c).
_INIT_FAILED = re.compile(r"(?:Failed to execute|Requested init) [^\n]*\(error -?(\d{1,4})\)")
_AGENT_PANIC = re.compile(re.escape(AGENT_CONSOLE_MARK) + r" panic: [^\n]*")


@attrs.frozen(kw_only=True)
class ConsoleStory:
    """What was found on a console.

    Args:
        size: Bytes written to it; None when there is no console log.
        agent_seen: The guest agent wrote something.
        kernel_panic: The line of the kernel's panic, or empty.
        out_of_memory: The line of the kernel's out-of-memory killer, or empty.
        agent_panic: The agent's own last words, or empty.
        init_failed: The kernel's line about a first program that it cannot execute, or empty.
        init_errno: The error number in that line.
        problem: Why the log could not be read, or empty.
        tail: The last lines, safe to print.
    """

    size: int | None
    agent_seen: bool = False
    kernel_panic: str = ""
    out_of_memory: str = ""
    agent_panic: str = ""
    init_failed: str = ""
    init_errno: int = 0
    problem: str = ""
    tail: str = ""

    def describe(self) -> str:
        """Say in a few words how far the guest came."""
        if self.problem:
            return f"cannot be read: {self.problem}"
        if not self.size:
            return "empty (no kernel or guest message)"
        if not self.agent_seen:
            return f"kernel messages only, {self.size} bytes (the guest agent never started)"
        return f"{self.size} bytes, the guest agent was running"


def read_console(path: Path, secrets: Secrets) -> ConsoleStory:
    """Return the story of a console log, without the secrets.

    Never raises, and reads a bounded part of the file.
    """
    excerpt = read_excerpt(path)
    # Looked at as it is: a secret may be a word that is looked for.
    text = printable(excerpt.head + excerpt.tail)

    def last(pattern: re.Pattern[str]) -> str:
        found = [match[0] for match in pattern.finditer(text)]
        return secrets.hide_text(found[-1])[:_LINE_CHARACTERS].rstrip() if found else ""

    init_failed = _INIT_FAILED.search(text)

    return ConsoleStory(
        size=excerpt.size,
        agent_seen=AGENT_CONSOLE_MARK in text,
        kernel_panic=last(_PANIC),
        out_of_memory=last(_OUT_OF_MEMORY),
        agent_panic=last(_AGENT_PANIC),
        init_failed=secrets.hide_text(init_failed[0])[:_LINE_CHARACTERS] if init_failed else "",
        init_errno=int(init_failed[1]) if init_failed else 0,
        problem=excerpt.problem,
        tail=last_lines(secrets.hide_in(excerpt).tail, _TAIL_LINES),
    )
