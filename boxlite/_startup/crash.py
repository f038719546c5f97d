"""Turning what a dead VM left into a report that a person can act on.

The sources, in the order in which they are believed: the shim's exit file, the
shim's exit code, what QEMU and the shim wrote to stderr, and the guest's
console. The console comes last because the guest writes it, but it is the only
witness of a kernel panic, which QEMU reports as an orderly exit.
"""

from __future__ import annotations

import shlex
import signal
from typing import TYPE_CHECKING, Final, Literal

import attrs

from boxlite._evidence import Excerpt, first_lines, last_lines, printable, read_excerpt
from boxlite._report import CrashKind, CrashReport

from .console import ConsoleStory, read_console
from .exitfile import ExitRecord, read_exit_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from boxlite._layout import BoxLayout

Phase = Literal["start", "run"]

_STDERR_LINES: Final = 15
_DEBUG_CHARACTERS: Final = 32 << 10


@attrs.frozen(kw_only=True)
class Circumstances:
    """What the host knows about a box when it writes a report.

    Args:
        box_id: Which box.
        layout: Where its files are.
        argv: The command line of QEMU; empty when it was not made yet.
        timings: Finished stages of the start and the seconds that each took.
        stage: The stage that was under way, or empty while the box runs.
        template: The template that the VM was restored from; empty if it booted.
    """

    box_id: str
    layout: BoxLayout
    argv: Sequence[str] = ()
    timings: Sequence[tuple[str, float]] = ()
    stage: str = ""
    template: str = ""


@attrs.frozen(kw_only=True)
class _Story:
    kind: CrashKind
    summary: str
    cause: str
    likely_causes: tuple[str, ...] = ()


def crash_report(about: Circumstances, *, phase: Phase, exit_code: int | None) -> CrashReport:
    """Report on a box whose shim has ended.

    Reads a bounded part of three files, and never raises whatever is in them.

    Args:
        about: What the host knows.
        phase: ``"start"`` when the box never became ready, else ``"run"``.
        exit_code: The shim's exit code, -n when signal n ended it, None when it
            is not known (the shim was not our child).
    """
    record = read_exit_file(about.layout.exit)
    console = read_console(about.layout.console_log)
    stderr = read_excerpt(about.layout.shim_stderr)
    story = _tell(record, console, stderr, exit_code, about.argv)
    what = "failed to start" if phase == "start" else "died while it was running"
    headline = f"Box {about.box_id} {what}: {story.summary}"
    report = _compose(about, story, headline, console, stderr)
    return attrs.evolve(report, exit_code=exit_code if record is None else record.exit_code)


def timeout_report(about: Circumstances, *, seconds: float, shim_alive: bool) -> CrashReport:
    """Report on a box that did not become ready in time.

    Args:
        about: What the host knows.
        seconds: The deadline that passed.
        shim_alive: Whether the shim was still there at that moment.
    """
    console = read_console(about.layout.console_log)
    stderr = read_excerpt(about.layout.shim_stderr)
    if about.template and not console.agent_seen:
        cause = "The VM was restored from a template, and its guest has not said a word."
        likely = (
            "a slow or busy host, without hardware acceleration: raise ready_timeout",
            f"a template that does not work: boxlite templates rm {about.template}",
        )
    elif not console.size:
        cause = "The VM is running and its kernel has not written one line."
        likely = (
            "the kernel does not fit this VM (a custom kernel without a serial console?)",
            "hardware virtualisation that opens but does not run guests: try accelerator='tcg'",
        )
    elif not console.agent_seen:
        cause = "The guest's kernel is starting, and has not reached the guest agent."
        likely = (
            "a slow or busy host, without hardware acceleration: raise ready_timeout",
            "too little memory for the guest: raise memory_mib",
        )
    else:
        cause = "The guest agent is running, and has not said that it is ready."
        likely = (
            "a slow or busy host, without hardware acceleration: raise ready_timeout",
            "the guest agent is stuck: see the end of the console",
        )
    story = _Story(
        kind=CrashKind.TIMEOUT,
        summary=f"not ready within {seconds:g} s",
        cause=cause,
        likely_causes=likely,
    )
    headline = f"Box {about.box_id} failed to start: {story.summary}"
    return _compose(
        about,
        story,
        headline,
        console,
        stderr,
        extra=(
            ("shim", "alive" if shim_alive else "dead"),
            ("ready socket", "there" if about.layout.ready_socket.is_socket() else "missing"),
        ),
    )


def broken_guest_report(about: Circumstances, error: Exception) -> CrashReport:
    """Report on a guest that said it was ready, lives, and does not do what it should.

    Args:
        about: What the host knows.
        error: How its first call ended.
    """
    story = _Story(
        kind=CrashKind.GUEST_FAULT,
        summary="the guest agent is broken",
        cause=f"The guest said that it was ready, and then failed its first call: {error}",
        likely_causes=(
            "the guest ran out of memory: raise memory_mib",
            "a defect in boxlite: please report it with the console log",
        ),
    )
    headline = f"Box {about.box_id} failed to start: {story.summary}"
    console = read_console(about.layout.console_log)
    return _compose(about, story, headline, console, read_excerpt(about.layout.shim_stderr))


def _tell(
    record: ExitRecord | None,
    console: ConsoleStory,
    stderr: Excerpt,
    exit_code: int | None,
    argv: Sequence[str],
) -> _Story:
    if record is None:
        return _tell_without_record(stderr, exit_code)
    if record.type == "signal":
        return _tell_signal(record.signal)
    if record.type == "panic":
        where = f" at {record.location}" if record.location else ""
        return _Story(
            kind=CrashKind.SHIM_PANIC,
            summary="the shim failed",
            cause=f"The shim had an unhandled exception{where}: {record.message}",
            likely_causes=("a defect in boxlite: please report it with this text",),
        )
    if record.type == "error":
        return _tell_error(record, stderr, argv)
    return _tell_exit(console)


def _tell_signal(name: str) -> _Story:
    causes: dict[str, tuple[str, tuple[str, ...]]] = {
        "SIGKILL": (
            "QEMU was killed from outside (SIGKILL).",
            (
                "the host ran out of memory and its kernel killed the VM: see dmesg",
                "somebody or some supervisor killed the process",
            ),
        ),
        "SIGABRT": (
            "QEMU gave up on an internal error (SIGABRT).",
            (
                "KVM cannot run this guest: try accelerator='tcg'",
                "a defect in QEMU, or a QEMU that does not fit this host",
            ),
        ),
        "SIGSYS": (
            "QEMU's own seccomp sandbox stopped it (SIGSYS).",
            ("this QEMU needs a system call that its sandbox denies: see dmesg",),
        ),
        "SIGILL": (
            "QEMU executed an instruction that this CPU does not have (SIGILL).",
            ("a QEMU built for another CPU",),
        ),
        "SIGSEGV": (
            "QEMU made an invalid memory access (SIGSEGV).",
            (
                "a defect in QEMU, perhaps provoked: treat the guest's code as hostile",
                "a damaged installation of QEMU or its libraries",
            ),
        ),
        "SIGBUS": (
            "QEMU could not have a page of the guest's memory, which is a file (SIGBUS).",
            (
                "the file system of the home is full",
                "the file of the template was cut short while the VM ran",
            ),
        ),
    }
    cause, likely = causes.get(
        name, (f"QEMU was ended by {name}.", ("somebody or some supervisor signalled the process",))
    )
    return _Story(
        kind=CrashKind.SIGNAL,
        summary=f"the VM was ended by {name}",
        cause=cause,
        likely_causes=likely,
    )


# What QEMU says, in lower case, and what it means. First match wins.
_QEMU_MESSAGES: Final = (
    ("could not access kvm", "The accelerator KVM could not be opened.",
     ("no right to open /dev/kvm: sudo usermod -aG kvm $USER, and log in again",
      "no KVM on this host: use accelerator='auto' or 'tcg'")),
    ("failed to initialize kvm", "The accelerator KVM could not be used.",
     ("no KVM on this host: use accelerator='auto' or 'tcg'",)),
    ("kvm_exit_internal_error", "The host's KVM cannot run this guest.",
     ("nested virtualisation that does not work: use accelerator='tcg'",)),
    ("cannot set up guest memory", "The host did not give QEMU the memory of the guest.",
     ("too little free memory on the host: lower memory_mib", "a memory limit on this process")),
    ("cannot allocate memory", "The host did not give QEMU the memory of the guest.",
     ("too little free memory on the host: lower memory_mib", "a memory limit on this process")),
    ("no space left on device", "The disk is full.", ("the file system of the home is full",)),
    ("error loading", "QEMU could not load the kernel or the initramfs.",
     ("a damaged or foreign kernel file: check RuntimeOptions.kernel",)),
    ("could not open", "QEMU could not open one of its files.",
     ("a file of the box was removed or cannot be read",)),
    ("could not load", "QEMU could not load one of its files.",
     ("a damaged or foreign kernel file: check RuntimeOptions.kernel",
      "firmware of QEMU is missing: install the packages seabios and qemu-system-data")),
    ("invalid kernel header", "QEMU does not take the kernel file.",
     ("not a bzImage for this architecture: check RuntimeOptions.kernel",)),
    ("not supported", "This QEMU does not support what boxlite asks of it.",
     ("a QEMU that is too old or built without a feature",)),
    ("invalid option", "This QEMU does not know an option that boxlite gives it.",
     ("a QEMU that is too old or built without a feature",)),
    ("invalid parameter", "This QEMU does not know an option that boxlite gives it.",
     ("a QEMU that is too old or built without a feature",)),
)  # fmt: skip


def _tell_error(record: ExitRecord, stderr: Excerpt, argv: Sequence[str]) -> _Story:
    said = record.message or last_lines(stderr.tail, 1)
    if record.template:
        return _Story(
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
    for needle, cause, causes in _QEMU_MESSAGES:
        if needle in said.lower():
            meaning, likely = cause, causes
            break
    program = argv[0] if argv else "QEMU"
    return _Story(
        kind=CrashKind.UNSUPPORTED if record.unsupported else CrashKind.ENGINE,
        summary=f"the VM exited with {record.exit_code}",
        cause=f"{meaning} {program} says: {said}" if said else meaning,
        likely_causes=likely,
    )


def _tell_exit(console: ConsoleStory) -> _Story:
    if console.kernel_panic:
        # A kernel that cannot unpack its root for lack of memory says that it cannot mount it.
        memory = bool(console.out_of_memory) or any(
            sign in console.kernel_panic.lower() for sign in ("memory", "unable to mount root")
        )
        return _Story(
            kind=CrashKind.KERNEL_PANIC,
            summary="the guest's kernel panicked",
            cause=f"The console shows: {console.out_of_memory or console.kernel_panic}",
            likely_causes=(
                *(("the guest ran out of memory: raise memory_mib",) if memory else ()),
                "code in the guest with root rights crashed its kernel",
                "a kernel or root file system that does not fit this VM",
            ),
        )
    if console.agent_panic:
        return _Story(
            kind=CrashKind.GUEST_EXIT,
            summary="the guest agent failed",
            cause=f"The console shows: {console.agent_panic}",
            likely_causes=(
                "the guest ran out of memory: raise memory_mib",
                "a defect in boxlite: please report it with the console log",
            ),
        )
    return _Story(
        kind=CrashKind.GUEST_EXIT,
        summary="the VM powered off by itself",
        cause="The guest powered off or rebooted, and nobody had asked it to.",
        likely_causes=("code in the guest with root rights powered it off",),
    )


def _tell_without_record(stderr: Excerpt, exit_code: int | None) -> _Story:
    if exit_code is not None and exit_code < 0:
        how = f"was ended by {_signal_name(-exit_code)}"
    elif exit_code is None:
        how = "ended, nobody knows how"
    else:
        how = f"exited with {exit_code}"
    last = last_lines(stderr.tail, 1)
    return _Story(
        kind=CrashKind.SHIM_LOST,
        summary=f"its shim {how}",
        cause="The shim ended without leaving an exit file, and the VM went with it."
        + (f" It last wrote: {last}" if last else ""),
        likely_causes=(
            "somebody or some supervisor killed the process",
            "the host ran out of memory and its kernel killed it: see dmesg",
            "the disk is full",
        )
        if exit_code is None or exit_code < 0
        else ("the Python interpreter could not run the shim: see shim.stderr",),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _compose(
    about: Circumstances,
    story: _Story,
    headline: str,
    console: ConsoleStory,
    stderr: Excerpt,
    *,
    extra: tuple[tuple[str, str], ...] = (),
) -> CrashReport:
    evidence = [*extra, ("console", console.describe())]
    if console.tail:
        evidence.append(("console ends", console.tail))
    if said := first_lines(stderr.head, _STDERR_LINES):
        evidence.append(("stderr", said))
    if about.template:
        evidence.append(("template", about.template))
    if about.stage:
        evidence.append(("stage", about.stage))
    if about.timings:
        took = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in about.timings)
        evidence.append(("stages done", took))
    if about.argv:
        evidence.append(("command line", shlex.join(about.argv)))
    return CrashReport(
        box_id=about.box_id,
        kind=story.kind,
        headline=headline,
        cause=story.cause,
        likely_causes=story.likely_causes,
        evidence=tuple(evidence),
        files=(
            ("console", about.layout.console_log),
            ("stderr", about.layout.shim_stderr),
            ("exit file", about.layout.exit),
        ),
        debug_info=printable(stderr.head)[:_DEBUG_CHARACTERS],
    )
