"""The story of a box that died, as data with one rendering.

:mod:`boxlite._startup.crash` assembles reports from the files that a shim
leaves; this module only holds and renders them, so that errors can carry them.
"""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path


#: The shape of :meth:`CrashReport.as_dict`; a change of a field's meaning raises it.
FORMAT_VERSION: Final = 1


class CrashKind(enum.Enum):
    """What sort of end it was; a program may branch on this."""

    #: The VM process was ended by a signal.
    SIGNAL = "signal"
    #: The host ran out of memory, and its kernel killed the VM or its shim.
    HOST_MEMORY = "host_memory"
    #: Somebody else had the VM stopped in order.
    STOPPED = "stopped"
    #: The VM process exited with an error of its own.
    ENGINE = "engine"
    #: QEMU or the host cannot do what was asked of it.
    UNSUPPORTED = "unsupported"
    #: The machine's state could not be saved as a template, or loaded from one.
    TEMPLATE = "template"
    #: The guest's kernel panicked.
    KERNEL_PANIC = "kernel_panic"
    #: The VM powered off or rebooted by itself.
    GUEST_EXIT = "guest_exit"
    #: The guest lives and breaks the protocol.
    GUEST_FAULT = "guest_fault"
    #: The shim had an unhandled exception.
    SHIM_PANIC = "shim_panic"
    #: The shim died without leaving an exit file.
    SHIM_LOST = "shim_lost"
    #: Nothing died: the deadline passed.
    TIMEOUT = "timeout"


@attrs.frozen(kw_only=True)
class CrashReport:
    """Why a box died, and where to look next.

    Every text in it that came from the guest or from a file is bounded and has
    its control characters escaped, so that a report can be printed anywhere.
    The values of environment variables that the box or a command was given are
    blotted out of it, except for those shorter than 4 bytes.

    Args:
        box_id: Which box.
        kind: What sort of end it was.
        headline: One line: what happened, in which phase.
        cause: The most specific reason that was found, one or two sentences.
        likely_causes: What usually leads here, most likely first.
        evidence: Pairs of a name and what was seen, in reading order.
        files: Pairs of a name and the file to open next.
        exit_code: The shim's exit code, when it is known.
        debug_info: Raw text of QEMU and shim, bounded: for a bug report.
    """

    box_id: str
    kind: CrashKind
    headline: str
    cause: str
    likely_causes: tuple[str, ...] = ()
    evidence: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, Path], ...] = ()
    exit_code: int | None = None
    debug_info: str = ""

    def render(self) -> str:
        """Return the report as plain text of several lines, without a final newline."""
        lines = [self.headline, "", self.cause]
        if self.likely_causes:
            lines += ["", "Likely causes:", *(f"  - {cause}" for cause in self.likely_causes)]
        if self.evidence:
            lines += ["", "Evidence:"]
            for name, seen in self.evidence:
                first, *rest = seen.splitlines() or [""]
                lines.append(f"  {name}: {first}" if not rest else f"  {name}:")
                lines += [f"    {line}" for line in ([first, *rest] if rest else [])]
        if self.files:
            lines += ["", "Files:", *(f"  {name}: {path}" for name, path in self.files)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data: what :meth:`render_json` writes."""
        return {
            "version": FORMAT_VERSION,
            "box_id": self.box_id,
            "kind": self.kind.value,
            "headline": self.headline,
            "cause": self.cause,
            "likely_causes": list(self.likely_causes),
            "evidence": [{"name": name, "seen": seen} for name, seen in self.evidence],
            "files": [{"name": name, "path": str(path)} for name, path in self.files],
            "exit_code": self.exit_code,
            "debug_info": self.debug_info,
        }

    def render_json(self, *, indent: int | None = None) -> str:
        """Return the report as one JSON object, in ASCII.

        Args:
            indent: Spaces per level; None for one line.
        """
        return json.dumps(self.as_dict(), indent=indent)
