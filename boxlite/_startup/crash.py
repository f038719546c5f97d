"""Turning what a dead VM left into a report that a person can act on.

Every report is made here, of a story (:mod:`.stories`) and of the evidence for
it. Making one reads a bounded part of a few files and never raises, whatever is
in them.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Final, Literal

import attrs

from boxlite._evidence import Excerpt, first_lines, printable, read_excerpt
from boxlite._process import read_pid_file
from boxlite._report import CrashKind, CrashReport
from boxlite._secrets import Secrets

from .console import ConsoleStory, read_console
from .exitfile import read_exit_file
from .hostmemory import killed_for_memory
from .stories import FULL_BYTES, Story, Traces, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from boxlite._layout import BoxLayout

Phase = Literal["start", "run", "attach"]

_STDERR_LINES: Final = 15
_DEBUG_CHARACTERS: Final = 32 << 10
_HEADLINES: Final[dict[Phase, str]] = {
    "start": "failed to start",
    "run": "died while it was running",
    "attach": "cannot be attached to",
}
_SLOW: Final = "a slow or busy host, without hardware acceleration: raise ready_timeout"


@attrs.frozen(kw_only=True)
class Circumstances:
    """What the host knows about a box when it writes a report.

    Args:
        box_id: Which box.
        layout: Where its files are.
        argv: The command line of QEMU; empty when it was not made yet.
        timings: Finished stages of the start and the seconds that each took.
        under_way: Stages that have begun and not ended, and the seconds since.
        template: The template that the VM was restored from; empty if it booted.
        oom_kills: What ``hostmemory.oom_kills`` returned before the start.
        secrets: What must not be shown.
    """

    box_id: str
    layout: BoxLayout
    argv: Sequence[str] = ()
    timings: Sequence[tuple[str, float]] = ()
    under_way: Sequence[tuple[str, float]] = ()
    template: str = ""
    oom_kills: int | None = None
    secrets: Secrets = attrs.field(factory=Secrets)


def crash_report(about: Circumstances, *, phase: Phase, exit_code: int | None) -> CrashReport:
    """Report on a box whose shim has ended.

    Args:
        about: What the host knows.
        phase: ``"start"`` when the box never became ready, ``"run"`` when it died
            in use, ``"attach"`` when it was found dead.
        exit_code: The shim's exit code, -n when signal n ended it, None when it
            is not known (the shim was not our child).
    """
    record, unread = read_exit_file(about.layout.exit, about.secrets)
    left = _Left.by(about)
    free = _free_bytes(about.layout)
    processes = (read_pid_file(about.layout.shim_pid), read_pid_file(about.layout.vm_pid))
    story = tell(
        Traces(
            record=record,
            exit_code=exit_code,
            console=left.console,
            stderr=left.stderr,
            free_bytes=free,
            out_of_memory=killed_for_memory(
                [process for process in processes if process], kills_before=about.oom_kills
            ),
            program=about.argv[0] if about.argv else "QEMU",
        )
    )
    extra = [("exit file", unread)] if unread else []
    if free is not None and free < FULL_BYTES:
        extra.append(("free space", f"{free} bytes"))
    report = _compose(about, story, phase, left, extra)
    return attrs.evolve(report, exit_code=exit_code if record is None else record.exit_code)


def timeout_report(about: Circumstances, *, seconds: float, shim_alive: bool | None) -> CrashReport:
    """Report on a box that did not become ready in time.

    Args:
        about: What the host knows.
        seconds: The deadline that passed.
        shim_alive: Whether the shim was still there at that moment; None if unknown.
    """
    left = _Left.by(about)
    cause, likely = _why_late(about, left.console)
    story = Story(
        kind=CrashKind.TIMEOUT,
        summary=f"not ready within {seconds:g} s",
        cause=cause,
        likely_causes=likely,
    )
    alive = {True: "alive", False: "dead", None: "unknown"}[shim_alive]
    there = "there" if about.layout.ready_socket.is_socket() else "missing"
    return _compose(about, story, "start", left, [("shim", alive), ("ready socket", there)])


def _why_late(about: Circumstances, console: ConsoleStory) -> tuple[str, tuple[str, ...]]:
    if about.template and not console.agent_seen:
        return "The VM was restored from a template, and its guest has not said a word.", (
            _SLOW,
            f"a template that does not work: boxlite templates rm {about.template}",
        )
    if not console.size:
        return "The VM is running and its kernel has not written one line.", (
            "the kernel does not fit this VM (a custom kernel without a serial console?)",
            "hardware virtualisation that opens but does not run guests: try accelerator='tcg'",
        )
    if not console.agent_seen:
        return "The guest's kernel is starting, and has not reached the guest agent.", (
            _SLOW,
            "too little memory for the guest: raise memory_mib",
        )
    return "The guest agent is running, and has not said that it is ready.", (
        _SLOW,
        "the guest agent is stuck: see the end of the console",
    )


def broken_guest_report(
    about: Circumstances, error: Exception, *, phase: Phase = "start"
) -> CrashReport:
    """Report on a guest that said it was ready, lives, and does not do what it should.

    Args:
        about: What the host knows.
        error: How its first call ended.
        phase: As for :func:`crash_report`.
    """
    story = Story(
        kind=CrashKind.GUEST_FAULT,
        summary="the guest agent is broken",
        cause="The guest said that it was ready, and then failed its first call:"
        f" {about.secrets.hide_text(str(error))}",
        likely_causes=(
            "the guest ran out of memory: raise memory_mib",
            "a defect in boxlite: please report it with the console log",
        ),
    )
    return _compose(about, story, phase, _Left.by(about), [])


@attrs.frozen
class _Left:
    """What a box wrote."""

    console: ConsoleStory
    stderr: Excerpt

    @classmethod
    def by(cls, about: Circumstances) -> _Left:
        console = read_console(about.layout.console_log, about.secrets)
        return cls(console, about.secrets.hide_in(read_excerpt(about.layout.shim_stderr)))


def _free_bytes(layout: BoxLayout) -> int | None:
    try:
        found = os.statvfs(layout.root)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _compose(
    about: Circumstances,
    story: Story,
    phase: Phase,
    left: _Left,
    extra: Sequence[tuple[str, str]],
) -> CrashReport:
    evidence = [*extra, ("console", left.console.describe())]
    if left.console.out_of_memory:
        evidence.append(("guest out of memory", left.console.out_of_memory))
    if left.console.tail:
        evidence.append(("console ends", left.console.tail))
    if left.stderr.problem:
        evidence.append(("stderr", f"cannot be read: {left.stderr.problem}"))
    elif said := first_lines(left.stderr.head, _STDERR_LINES):
        evidence.append(("stderr", said))
    if about.template:
        evidence.append(("template", about.template))
    if about.under_way:
        evidence.append(("stage", f"{_listed(about.under_way)} so far"))
    if about.timings:
        evidence.append(("stages done", _listed(about.timings)))
    if about.argv:
        evidence.append(("command line", shlex.join(about.argv)))
    return CrashReport(
        box_id=about.box_id,
        kind=story.kind,
        headline=f"Box {about.box_id} {_HEADLINES[phase]}: {story.summary}",
        cause=story.cause,
        likely_causes=story.likely_causes,
        evidence=tuple(evidence),
        files=(
            ("console", about.layout.console_log),
            ("stderr", about.layout.shim_stderr),
            ("exit file", about.layout.exit),
        ),
        debug_info=printable(left.stderr.head)[:_DEBUG_CHARACTERS],
    )


def _listed(stages: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {seconds:.3f} s" for name, seconds in stages)
