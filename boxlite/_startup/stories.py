"""How boxes die: from what a dead box left to one story about it.

The sources, in the order in which they are believed: the shim's exit file, the
shim's exit code, what QEMU and the shim wrote to stderr, and the guest's
console. The console comes last because the guest writes it, but it is the only
witness of a kernel panic, which QEMU reports as an orderly exit.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._evidence import last_lines
from boxlite._report import CrashKind

from .causes import INIT_ERRORS, QEMU_MESSAGES, RAISE_MEMORY, SIGNALS, SOMEBODY
from .exitfile import ExitRecord

if TYPE_CHECKING:
    from boxlite._evidence import Excerpt

    from .console import ConsoleStory

_PANIC_CODE: Final = 101
#: With less than this, not even an exit file can be counted on.
FULL_BYTES: Final = 64 << 10

_DEFECT: Final = "a defect in boxlite: please report it with this text"


@attrs.frozen(kw_only=True)
class Traces:
    """What a dead box left.

    Args:
        record: What the exit file says; None when it says nothing.
        exit_code: The shim's exit code, -n when signal n ended it, None when unknown.
        console: What the guest's console shows.
        stderr: What QEMU and the shim wrote.
        free_bytes: Space in the file system of the box; None when unknown.
        out_of_memory: What says that the host's kernel killed it for memory, or empty.
        program: The name of QEMU.
    """

    record: ExitRecord | None
    exit_code: int | None
    console: ConsoleStory
    stderr: Excerpt
    free_bytes: int | None = None
    out_of_memory: str = ""
    program: str = "QEMU"

    @property
    def disk_full(self) -> bool:
        """Whether files could not be written for want of space."""
        return self.free_bytes is not None and self.free_bytes < FULL_BYTES

    @property
    def last_words(self) -> str:
        """The last line on stderr."""
        return last_lines(self.stderr.tail, 1)


@attrs.frozen(kw_only=True)
class Story:
    """How a box died.

    Args:
        kind: What sort of end it was.
        summary: The end of the headline.
        cause: The most specific reason, one or two sentences.
        likely_causes: What usually leads here, most likely first.
    """

    kind: CrashKind
    summary: str
    cause: str
    likely_causes: tuple[str, ...] = ()


def tell(traces: Traces) -> Story:
    """Return the story of a box whose shim has ended. Accepts any traces."""
    record = traces.record
    story = _tell_recorded(record, traces) if record is not None else _tell_unrecorded(traces)
    if traces.disk_full:
        full = "the file system of the home is full"
        causes = tuple(cause for cause in story.likely_causes if cause != full)
        story = attrs.evolve(story, likely_causes=(full, *causes))
    return story


def _tell_recorded(record: ExitRecord, traces: Traces) -> Story:
    if record.type == "signal":
        return _tell_signal(record.signal, traces)
    if record.type == "panic":
        return _tell_panic(record.message, record.location)
    if record.type == "error":
        return _tell_error(record, traces)
    return _tell_exit(record, traces.console)


def _tell_unrecorded(traces: Traces) -> Story:
    """Tell it from the exit code: it is that of the exit file that is not there."""
    code = traces.exit_code
    if code is None or code < 0 or _UNABLE.search(traces.stderr.head + traces.stderr.tail):
        return _tell_shim_lost(traces)
    if code == 0:
        made_up = ExitRecord(type="exit", exit_code=code)
    elif code == _PANIC_CODE:
        made_up = ExitRecord(type="panic", exit_code=code, message=traces.last_words)
    elif 128 < code < 128 + signal.NSIG:
        made_up = ExitRecord(type="signal", exit_code=code, signal=_signal_name(code - 128))
    else:
        made_up = ExitRecord(type="error", exit_code=code, message=traces.last_words)
    story = _tell_recorded(made_up, traces)
    return attrs.evolve(
        story, cause=f"{story.cause} (The shim exited with {code} and left no exit file.)"
    )


# What the interpreter says when it cannot run the shim at all.
_UNABLE: Final = re.compile(
    rb"Fatal Python error|can't open file|error while loading shared libraries"
    rb"|ModuleNotFoundError|ImportError|SyntaxError"
)


def _tell_shim_lost(traces: Traces) -> Story:
    code = traces.exit_code
    said = f" It last wrote: {traces.last_words}" if traces.last_words else ""
    if code is not None and code >= 0:
        return Story(
            kind=CrashKind.SHIM_LOST,
            summary=f"its shim exited with {code}",
            cause=f"The Python interpreter could not run the shim.{said}",
            likely_causes=("a damaged installation of Python or boxlite: see shim.stderr",),
        )
    how = "ended, nobody knows how" if code is None else f"was ended by {_signal_name(-code)}"
    if traces.out_of_memory:
        return _tell_host_memory("its shim", traces.out_of_memory)
    return Story(
        kind=CrashKind.SHIM_LOST,
        summary=f"its shim {how}",
        cause=f"The shim ended without leaving an exit file, and the VM went with it.{said}",
        likely_causes=(
            SOMEBODY,
            "the host ran out of memory and its kernel killed it: see dmesg",
            "the file system of the home is full",
        ),
    )


def _tell_panic(message: str, location: str) -> Story:
    where = f" at {location}" if location else ""
    return Story(
        kind=CrashKind.SHIM_PANIC,
        summary="the shim failed",
        cause=f"The shim had an unhandled exception{where}: {message}",
        likely_causes=(_DEFECT,),
    )


def _tell_host_memory(who: str, seen: str) -> Story:
    return Story(
        kind=CrashKind.HOST_MEMORY,
        summary="the host ran out of memory",
        cause=f"The host's kernel killed {who} to get memory back: {seen}",
        likely_causes=(
            "more boxes or other programs than the host has memory for: fewer, or lower memory_mib",
            "a memory limit on this program's control group",
        ),
    )


def _tell_signal(name: str, traces: Traces) -> Story:
    if name == "SIGKILL" and traces.out_of_memory:
        return _tell_host_memory("the VM", traces.out_of_memory)
    somebody = (f"QEMU was ended by {name}.", ("somebody or some supervisor signalled it",))
    cause, likely = SIGNALS.get(name, somebody)
    if traces.last_words:
        cause = f"{cause} The last line on stderr: {traces.last_words}"
    return Story(
        kind=CrashKind.SIGNAL,
        summary=f"the VM was ended by {name}",
        cause=cause,
        likely_causes=likely,
    )


def _tell_error(record: ExitRecord, traces: Traces) -> Story:
    said = record.message or traces.last_words
    if record.template:
        return Story(
            kind=CrashKind.TEMPLATE,
            summary="its template does not work",
            cause=f"The machine's state could not be saved or loaded: {said}",
            likely_causes=(
                "a damaged template: it has been removed, and the next start makes a new one",
                "a QEMU that cannot do it: use RuntimeOptions(templates=False)",
            ),
        )
    meaning = "QEMU exited with an error of its own."
    likely: tuple[str, ...] = ("see what it wrote to stderr",)
    for needle, cause, causes in QEMU_MESSAGES:
        if needle in said.lower():
            meaning, likely = cause, causes
            break
    return Story(
        kind=CrashKind.UNSUPPORTED if record.unsupported else CrashKind.ENGINE,
        summary=f"the VM exited with {record.exit_code}",
        cause=f"{meaning} {traces.program} says: {said}" if said else meaning,
        likely_causes=likely,
    )


def _tell_exit(record: ExitRecord, console: ConsoleStory) -> Story:
    if console.kernel_panic:
        return _tell_kernel_panic(console)
    if console.agent_panic:
        return Story(
            kind=CrashKind.GUEST_EXIT,
            summary="the guest agent failed",
            cause=f"The console shows: {console.agent_panic}",
            likely_causes=(RAISE_MEMORY, _DEFECT),
        )
    if record.requested:
        return Story(
            kind=CrashKind.STOPPED,
            summary="it was stopped by somebody else",
            cause="The shim was told to stop the VM (SIGTERM), and this program had not done that.",
            likely_causes=("somebody, or a shutdown of the host, signalled the process",),
        )
    if not console.agent_seen and not record.ready:
        return Story(
            kind=CrashKind.GUEST_EXIT,
            summary="the VM reset before its guest agent ran",
            cause="The guest's kernel stopped without a word about why.",
            likely_causes=(
                "a kernel that does not fit this VM: check RuntimeOptions.kernel",
                "too little memory for the guest: raise memory_mib",
            ),
        )
    return Story(
        kind=CrashKind.GUEST_EXIT,
        summary="the VM powered off by itself",
        cause="The guest powered off or rebooted, and nobody had asked it to.",
        likely_causes=("code in the guest with root rights powered it off",),
    )


def _tell_kernel_panic(console: ConsoleStory) -> Story:
    if console.init_failed:
        number = console.init_errno
        likely = INIT_ERRORS.get(number, f"execve(2) failed: {os.strerror(number)}")
        return Story(
            kind=CrashKind.KERNEL_PANIC,
            summary="the guest has no program to start with",
            cause=f"The console shows: {console.init_failed}",
            likely_causes=(likely, "an image that does not fit this VM"),
        )
    # A kernel that cannot unpack its root for lack of memory says that it cannot mount it.
    memory = bool(console.out_of_memory) or any(
        sign in console.kernel_panic.lower() for sign in ("memory", "unable to mount root")
    )
    return Story(
        kind=CrashKind.KERNEL_PANIC,
        summary="the guest's kernel panicked",
        cause=f"The console shows: {console.out_of_memory or console.kernel_panic}",
        likely_causes=(
            *((RAISE_MEMORY,) if memory else ()),
            "code in the guest with root rights crashed its kernel",
            "a kernel or root file system that does not fit this VM",
        ),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
