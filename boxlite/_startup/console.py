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

_TAIL_LINES: Final = 12
_LINE_CHARACTERS: Final = 300

# "[    4.251376] Kernel panic - not syncing: ..." under printk timestamps.
_PANIC = re.compile(re.escape(KERNEL_PANIC_MARK) + r"[^\n]*")
_OUT_OF_MEMORY = re.compile(r"(?:Out of memory: |Memory cgroup out of memory: )[^\n]*")
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
        tail: The last lines, safe to print.
    """

    size: int | None
    agent_seen: bool = False
    kernel_panic: str = ""
    out_of_memory: str = ""
    agent_panic: str = ""
    tail: str = ""

    def describe(self) -> str:
        """Say in a few words how far the guest came."""
        if not self.size:
            return "empty (no kernel or guest message)"
        if not self.agent_seen:
            return f"kernel messages only, {self.size} bytes (the guest agent never started)"
        return f"{self.size} bytes, the guest agent was running"


def read_console(path: Path) -> ConsoleStory:
    """Return the story of a console log. Never raises, reads a bounded part of the file."""
    excerpt = read_excerpt(path)
    data = excerpt.head + excerpt.tail
    text = printable(data)

    def last(pattern: re.Pattern[str]) -> str:
        found = pattern.findall(text)
        return found[-1][:_LINE_CHARACTERS].rstrip() if found else ""

    return ConsoleStory(
        size=excerpt.size,
        agent_seen=AGENT_CONSOLE_MARK in text,
        kernel_panic=last(_PANIC),
        out_of_memory=last(_OUT_OF_MEMORY),
        agent_panic=last(_AGENT_PANIC),
        tail=last_lines(excerpt.tail, _TAIL_LINES),
    )
