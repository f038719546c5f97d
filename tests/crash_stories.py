"""Every way for a box to die, as files that a shim, QEMU and a guest have left.

The tests tell each story and compare the report, as its user reads it, with the
page ``docs/crash-reports.md``, which is made of nothing else.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from boxlite import CrashKind, CrashReport, GuestTimeoutError
from boxlite._layout import BoxLayout
from boxlite._secrets import Secrets
from boxlite._startup import crash
from boxlite._startup.crash import Circumstances, Phase

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

BOX_ID: Final = "k3v9p0a7x2mz"
#: What is shown instead of the directory that a test runs in.
HOME: Final = "/home/you/.local/share/boxlite"
QEMU: Final = "/usr/bin/qemu-system-x86_64"
_ARGV: Final = (QEMU, "-M", "q35,memory-backend=ram", "-m", "256M", "-nodefaults")

_BOOT: Final = b"""[    0.000000] Linux version 6.1.0-43-cloud-amd64 (debian@debian.org)
[    1.204113] Run /init as init process
"""
_UP: Final = _BOOT + b"[guest] T+1893ms: ready for a host\n"


@attrs.frozen(kw_only=True)
class Story:
    """One way to die.

    Args:
        name: Of the test, and of the place in the page.
        title: What happened, in the words of whoever knows.
        kind: What the report must say it is.
        headline: What its first line must end with.
        record: The exit file, if there is one.
        exit_code: The shim's, as its parent saw it.
        console: The guest's serial console.
        stderr: What QEMU and the shim wrote.
        phase: When it was.
        report: How the report is made.
        circumstances: What else the host knew.
        out_of_memory: What the host's kernel had to say.
        free_bytes: Space that was left.
    """

    name: str
    title: str
    kind: CrashKind
    headline: str
    record: dict[str, Any] | bytes | None = None
    exit_code: int | None = None
    console: bytes | None = _UP
    stderr: bytes = b""
    phase: Phase = "start"
    report: Literal["crash", "timeout", "broken"] = "crash"
    circumstances: dict[str, Any] = attrs.field(factory=dict)
    out_of_memory: str = ""
    free_bytes: int = 1 << 40

    def tell(self, home: Path, patch: pytest.MonkeyPatch) -> CrashReport:
        """Leave the files behind and return the report on them."""
        layout = BoxLayout(home / "boxes" / BOX_ID)
        layout.root.mkdir(parents=True)
        if self.record is not None:
            raw = (
                self.record if isinstance(self.record, bytes) else json.dumps(self.record).encode()
            )
            layout.exit.write_bytes(raw)
        if self.console is not None:
            layout.console_log.write_bytes(self.console)
        layout.shim_stderr.write_bytes(self.stderr)
        patch.setattr(crash, "killed_for_memory", lambda *_args, **_kwargs: self.out_of_memory)
        patch.setattr(crash, "_free_bytes", lambda _layout: self.free_bytes)
        known: dict[str, Any] = {"argv": _ARGV, "secrets": Secrets(["tiger-42"])}
        if self.phase == "start":
            known["timings"] = (("preflight", 0.004), ("layout", 0.001), ("shim", 0.021))
            known["under_way"] = (("guest_ready", 0.412),)
        about = Circumstances(box_id=BOX_ID, layout=layout, **{**known, **self.circumstances})
        if self.report == "timeout":
            return crash.timeout_report(about, seconds=30, shim_alive=True)
        if self.report == "broken":
            error = GuestTimeoutError("Ping: the guest did not answer within 5 s")
            return crash.broken_guest_report(about, error)
        return crash.crash_report(about, phase=self.phase, exit_code=self.exit_code)


def _signal(number: int, name: str) -> dict[str, Any]:
    return {"type": "signal", "exit_code": 128 + number, "signal": name, "ready": False}


def _error(message: str, *, code: int = 1, kind: str = "engine") -> dict[str, Any]:
    return {"type": "error", "exit_code": code, "message": message, "error_kind": kind}


def _exit(**fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"type": "exit", "exit_code": 0, "requested": False, "ready": True, **fields}


_DIED: Final = "died while it was running: "
_FAILED: Final = "failed to start: "

STORIES: Final = (
    Story(
        name="killed",
        title="Somebody kills QEMU while the box is used",
        kind=CrashKind.SIGNAL,
        headline=_DIED + "the VM was ended by SIGKILL",
        record=_signal(9, "SIGKILL"),
        phase="run",
    ),
    Story(
        name="aborted",
        title="QEMU aborts while the box starts",
        kind=CrashKind.SIGNAL,
        headline=_FAILED + "the VM was ended by SIGABRT",
        record=_signal(6, "SIGABRT"),
        console=b"",
        stderr=b"qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0\n"
        b"qemu-system-x86_64: kvm_buf_set_msrs: Assertion `ret == n' failed.\n",
    ),
    *(
        Story(
            name=name.lower(),
            title=f"QEMU gets {name}",
            kind=CrashKind.SIGNAL,
            headline=_DIED + f"the VM was ended by {name}",
            record=_signal(number, name),
            phase="run",
        )
        for number, name in (
            (4, "SIGILL"),
            (7, "SIGBUS"),
            (11, "SIGSEGV"),
            (31, "SIGSYS"),
            (12, "SIGUSR2"),
        )
    ),
    Story(
        name="host-memory",
        title="The host runs out of memory",
        kind=CrashKind.HOST_MEMORY,
        headline=_DIED + "the host ran out of memory",
        record=_signal(9, "SIGKILL"),
        phase="run",
        out_of_memory="the kernel's log: Memory cgroup out of memory: Killed process 4711"
        " (qemu-system-x86) total-vm:1032204kB, anon-rss:268220kB",
    ),
    Story(
        name="host-memory-shim",
        title="The host runs out of memory, and the shim is what its kernel kills",
        kind=CrashKind.HOST_MEMORY,
        headline=_DIED + "the host ran out of memory",
        exit_code=-9,
        phase="run",
        out_of_memory="the kernel has killed 1 process(es) of this control group for memory"
        " since the box was started",
    ),
    Story(
        name="stopped",
        title="Somebody else stops the shim in order",
        kind=CrashKind.STOPPED,
        headline=_DIED + "it was stopped by somebody else",
        record=_exit(requested=True),
        phase="run",
    ),
    Story(
        name="kvm-denied",
        title="KVM is there, and this user may not use it",
        kind=CrashKind.UNSUPPORTED,
        headline=_FAILED + "the VM exited with 1",
        record=_error("Could not access KVM kernel module: Permission denied", kind="unsupported"),
        console=b"",
        stderr=b"Could not access KVM kernel module: Permission denied\n"
        b"qemu-system-x86_64: failed to initialize kvm: Permission denied\n",
    ),
    Story(
        name="refused-option",
        title="QEMU refuses an option",
        kind=CrashKind.UNSUPPORTED,
        headline=_FAILED + "the VM exited with 1",
        record=_error("qemu-system-x86_64: -M q36: unsupported machine type", kind="unsupported"),
        console=b"",
    ),
    Story(
        name="no-guest-memory",
        title="The host does not give QEMU the guest's memory",
        kind=CrashKind.ENGINE,
        headline=_FAILED + "the VM exited with 1",
        record=_error(
            "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory"
        ),
        console=b"",
    ),
    Story(
        name="qemu-gone",
        title="QEMU is not there any more",
        kind=CrashKind.UNSUPPORTED,
        headline=_FAILED + "the VM exited with 127",
        record=_error(
            f"cannot execute '{QEMU}': No such file or directory", code=127, kind="unsupported"
        ),
        console=None,
    ),
    Story(
        name="qemu-error",
        title="QEMU fails in a way that nobody has seen yet",
        kind=CrashKind.ENGINE,
        headline=_FAILED + "the VM exited with 1",
        record=_error("qemu-system-x86_64: virtio-serial-bus: Guest failure in adding port"),
        stderr=b"qemu-system-x86_64: virtio-serial-bus: Guest failure in adding port\n",
    ),
    Story(
        name="template-damaged",
        title="The template is damaged",
        kind=CrashKind.TEMPLATE,
        headline=_FAILED + "its template does not work",
        record=_error(
            "qemu-system-x86_64: load of migration failed: Invalid argument", kind="template"
        ),
        console=b"",
        stderr=b"qemu-system-x86_64: Missing section footer for i8259\n"
        b"qemu-system-x86_64: load of migration failed: Invalid argument\n",
        circumstances={"template": "0f1e2d3c4b5a6978"},
    ),
    Story(
        name="shim-panic",
        title="The shim has an unhandled exception",
        kind=CrashKind.SHIM_PANIC,
        headline=_FAILED + "the shim failed",
        record={
            "type": "panic",
            "exit_code": 101,
            "message": "ValueError: descriptors [7] are named but not open",
            "location": "_spawn.py:134",
        },
        console=b"",
    ),
    Story(
        name="shim-killed",
        title="Somebody kills the shim",
        kind=CrashKind.SHIM_LOST,
        headline=_DIED + "its shim was ended by SIGKILL",
        exit_code=-9,
        phase="run",
    ),
    Story(
        name="shim-unable",
        title="The interpreter cannot run the shim",
        kind=CrashKind.SHIM_LOST,
        headline=_FAILED + "its shim exited with 1",
        exit_code=1,
        console=None,
        stderr=b"Fatal Python error: init_fs_encoding: failed to get the Python codec\n"
        b"ModuleNotFoundError: No module named 'encodings'\n",
    ),
    Story(
        name="disk-full",
        title="The disk is full, so there is no exit file",
        kind=CrashKind.SHIM_PANIC,
        headline=_FAILED + "the shim failed",
        exit_code=101,
        console=None,
        stderr=b"OSError: [Errno 28] No space left on device\n",
        free_bytes=0,
    ),
    Story(
        name="disk-full-signal",
        title="QEMU is killed and the disk is full",
        kind=CrashKind.SIGNAL,
        headline=_DIED + "the VM was ended by SIGBUS",
        exit_code=135,
        phase="run",
        free_bytes=4096,
    ),
    Story(
        name="disk-full-exit",
        title="The guest powers off and the disk is full",
        kind=CrashKind.GUEST_EXIT,
        headline=_DIED + "the VM powered off by itself",
        exit_code=0,
        phase="run",
        free_bytes=4096,
    ),
    Story(
        name="no-exit-file-error",
        title="QEMU fails and the exit file is cut short",
        kind=CrashKind.ENGINE,
        headline=_FAILED + "the VM exited with 1",
        record=b'{"type": "error", "exit_co',
        exit_code=1,
        console=b"",
        stderr=b"qemu-system-x86_64: could not load kernel '/boot/vmlinuz': Permission denied\n",
    ),
    Story(
        name="kernel-panic",
        title="Code with root rights crashes the guest's kernel",
        kind=CrashKind.KERNEL_PANIC,
        headline=_DIED + "the guest's kernel panicked",
        record=_exit(),
        console=_UP + b"[   12.481] sysrq: Trigger a crash\n"
        b"[   12.482] Kernel panic - not syncing: sysrq triggered crash\n"
        b"[   12.483] Rebooting in 1 seconds..\n",
        phase="run",
    ),
    Story(
        name="guest-memory",
        title="The guest runs out of memory",
        kind=CrashKind.KERNEL_PANIC,
        headline=_DIED + "the guest's kernel panicked",
        record=_exit(),
        console=_UP + b"[   31.7] Out of memory: Killed process 81 (python3) total-vm:241000kB,"
        b" anon-rss:190112kB\n"
        b"[   31.9] Kernel panic - not syncing: System is deadlocked on memory\n",
        phase="run",
    ),
    Story(
        name="no-loader",
        title="The image has no loader for its first program",
        kind=CrashKind.KERNEL_PANIC,
        headline=_FAILED + "the guest has no program to start with",
        record=_exit(ready=False),
        console=_BOOT + b"[    1.204980] Failed to execute /init (error -2)\n"
        b"[    1.205301] Kernel panic - not syncing: No working init found.  Try passing init="
        b" option to kernel.\n",
    ),
    Story(
        name="agent-failed",
        title="The guest agent fails",
        kind=CrashKind.GUEST_EXIT,
        headline=_FAILED + "the guest agent failed",
        record=_exit(ready=False),
        console=_UP + b"[guest] panic: MemoryError: \n",
    ),
    Story(
        name="reset",
        title="The VM resets before its agent has run",
        kind=CrashKind.GUEST_EXIT,
        headline=_FAILED + "the VM reset before its guest agent ran",
        record=_exit(ready=False),
        console=_BOOT,
    ),
    Story(
        name="powered-off",
        title="Code with root rights powers the guest off",
        kind=CrashKind.GUEST_EXIT,
        headline=_DIED + "the VM powered off by itself",
        record=_exit(),
        phase="run",
    ),
    Story(
        name="broken-agent",
        title="The agent says that it is ready, and answers nothing",
        kind=CrashKind.GUEST_FAULT,
        headline=_FAILED + "the guest agent is broken",
        report="broken",
    ),
    Story(
        name="timeout-silent",
        title="The guest's kernel says nothing",
        kind=CrashKind.TIMEOUT,
        headline=_FAILED + "not ready within 30 s",
        console=b"",
        report="timeout",
        circumstances={"under_way": (("guest_ready", 30.001),)},
    ),
    Story(
        name="timeout-kernel",
        title="The guest's kernel is slow",
        kind=CrashKind.TIMEOUT,
        headline=_FAILED + "not ready within 30 s",
        console=_BOOT,
        report="timeout",
        circumstances={"under_way": (("guest_ready", 30.001),)},
    ),
    Story(
        name="timeout-agent",
        title="The guest agent is stuck",
        kind=CrashKind.TIMEOUT,
        headline=_FAILED + "not ready within 30 s",
        report="timeout",
        circumstances={"under_way": (("guest_ready", 30.001),)},
    ),
    Story(
        name="timeout-template",
        title="A restored guest says nothing",
        kind=CrashKind.TIMEOUT,
        headline=_FAILED + "not ready within 30 s",
        console=b"",
        report="timeout",
        circumstances={"under_way": (("guest_ready", 30.001),), "template": "0f1e2d3c4b5a6978"},
    ),
    Story(
        name="attach-dead",
        title="A detached box is found dead",
        kind=CrashKind.SIGNAL,
        headline="cannot be attached to: the VM was ended by SIGKILL",
        record=_signal(9, "SIGKILL"),
        phase="attach",
        circumstances={"argv": ()},
    ),
    Story(
        name="secret",
        title="The guest prints a password that its command was given",
        kind=CrashKind.GUEST_EXIT,
        headline=_DIED + "the VM powered off by itself",
        record=_exit(),
        console=_UP + b"DB_PASSWORD=tiger-42\n",
        stderr=b"[shim] tiger-42\n",
        phase="run",
    ),
)


def page(reports: dict[str, CrashReport], homes: Path) -> str:
    """Return ``docs/crash-reports.md``.

    Args:
        reports: By the name of their story.
        homes: The directory of the homes that the reports were made in, each named like its story.
    """
    parts = [_INTRODUCTION]
    for story in STORIES:
        shown = _shown(reports[story.name].render(), homes / story.name)
        kind = f"`kind` is `CrashKind.{story.kind.name}`."
        parts.append(f"## {story.title}\n\n{kind}\n\n```text\n{shown}\n```\n")
    first = STORIES[0].name
    shown = _shown(reports[first].render_json(indent=2), homes / first)
    parts.append("## The same as JSON\n\nThe first report above: `report.render_json(indent=2)`.\n")
    parts.append(f"```json\n{shown}\n```\n")
    return "\n".join(parts)


def _shown(text: str, home: Path) -> str:
    return text.replace(os.fspath(home), HOME)


_INTRODUCTION: Final = """\
# What a box says when it dies

<!-- Made from the output of the tests by `nox -s docs -- --write`; a test compares. -->

A box that fails to start raises `BoxStartError`, one that dies in use `BoxCrashedError`. Both have
a `report`, a `CrashReport`: data with the fields `kind`, `headline`, `cause`, `likely_causes`,
`evidence`, `files`, `exit_code` and `debug_info`. `str(error)` is the report as text, and
`report.render_json()` the same as JSON.

```python
try:
    async with runtime.open_box() as box:
        await box.run(["make", "test"])
except (boxlite.BoxStartError, boxlite.BoxCrashedError) as exc:
    if exc.report.kind is boxlite.CrashKind.HOST_MEMORY:
        ...  # try again later, or with less memory
    log.error("%s", exc.report.headline, extra=exc.report.as_dict())
```

What the guest wrote is quoted, not believed: a report says "the console shows". Every text in it is
bounded and safe to print. The values of environment variables that the box or a command was given,
if they have 4 bytes or more, are replaced by `***` wherever they turn up. The files that it names
stay until the home has seen 20 later failures.

Each story below is the output of a test.
"""
