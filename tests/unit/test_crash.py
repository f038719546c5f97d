"""Reports: every way to die has its own story, and nothing in the files can break it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from boxlite import CrashKind, CrashReport, GuestTimeoutError
from boxlite._evidence import first_lines, last_lines, printable, read_excerpt
from boxlite._layout import BoxLayout
from boxlite._secrets import Secrets
from boxlite._startup.console import read_console
from boxlite._startup.crash import (
    Circumstances,
    Phase,
    broken_guest_report,
    crash_report,
    timeout_report,
)
from boxlite._startup.exitfile import parse_exit_record, read_exit_file

if TYPE_CHECKING:
    from pathlib import Path

ARGV = ("/usr/bin/qemu-system-x86_64", "-m", "256M", "-append", "console=ttyS0 panic=-1")


@pytest.fixture
def layout(tmp_path: Path) -> BoxLayout:
    """An empty box directory."""
    return BoxLayout(tmp_path)


def report(
    layout: BoxLayout,
    *,
    record: dict[str, Any] | bytes | None = None,
    console: bytes | None = None,
    stderr: bytes | None = None,
    exit_code: int | None = None,
    phase: Phase = "start",
) -> CrashReport:
    """Write the files, and report on them."""
    if record is not None:
        data = record if isinstance(record, bytes) else json.dumps(record).encode()
        layout.exit.write_bytes(data)
    if console is not None:
        layout.console_log.write_bytes(console)
    if stderr is not None:
        layout.shim_stderr.write_bytes(stderr)
    about = Circumstances(
        box_id="b0x",
        layout=layout,
        argv=ARGV,
        timings=[("layout", 0.25)],
        under_way=[("guest_connect", 1.5)],
    )
    return crash_report(about, phase=phase, exit_code=exit_code)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGKILL", "killed from outside"),
        ("SIGABRT", "internal error"),
        ("SIGSEGV", "invalid memory access"),
        ("SIGBUS", "could not have a page"),
        ("SIGILL", "instruction that this CPU does not have"),
        ("SIGSYS", "seccomp sandbox"),
        ("SIGUSR1", "ended by SIGUSR1"),
    ],
)
def test_each_signal_has_its_story(layout: BoxLayout, name: str, words: str) -> None:
    """The signal is in the headline, and what it means in the cause."""
    found = report(layout, record={"type": "signal", "exit_code": 134, "signal": name})

    assert found.kind is CrashKind.SIGNAL
    assert found.headline == f"Box b0x failed to start: the VM was ended by {name}"
    assert words in found.cause
    assert found.likely_causes
    assert found.exit_code == 134


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Could not access KVM kernel module: Permission denied", "usermod -aG kvm"),
        ("qemu: could not load kernel 'x': error", "RuntimeOptions.kernel"),
        ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "lower memory_mib"),
        ("qemu-system-x86_64: -foo: invalid option", "too old"),
        ("write failed: No space left on device", "full"),
        ("something that nobody has seen yet", "see what it wrote to stderr"),
    ],
)
def test_what_qemu_says_is_told_and_explained(layout: BoxLayout, message: str, words: str) -> None:
    """The cause carries QEMU's own words; the likely causes say what to do."""
    found = report(
        layout, record={"type": "error", "exit_code": 1, "message": message}, stderr=b"ignored\n"
    )

    assert found.kind is CrashKind.ENGINE
    assert message in found.cause
    assert words in " ".join(found.likely_causes)


def test_an_unsupported_request_is_its_own_kind(layout: BoxLayout) -> None:
    """A program may want to branch on it."""
    record = {"type": "error", "exit_code": 1, "error_kind": "unsupported", "message": "no"}

    assert report(layout, record=record).kind is CrashKind.UNSUPPORTED


def test_a_shim_that_failed_names_the_exception(layout: BoxLayout) -> None:
    """Type, message, file and line: a defect report needs no more."""
    record = {
        "type": "panic",
        "exit_code": 101,
        "message": "ValueError: what",
        "location": "watch.py:42",
    }
    found = report(layout, record=record)

    assert found.kind is CrashKind.SHIM_PANIC
    assert "watch.py:42: ValueError: what" in found.cause


def test_a_kernel_panic_is_read_off_the_console(layout: BoxLayout) -> None:
    """QEMU calls it an orderly exit; only the console knows better."""
    console = b"[guest] T+9ms: up\n[    4.2] Kernel panic - not syncing: sysrq triggered crash\n"
    found = report(
        layout, record={"type": "exit", "exit_code": 0, "ready": True}, console=console, phase="run"
    )

    assert found.kind is CrashKind.KERNEL_PANIC
    assert found.headline == "Box b0x died while it was running: the guest's kernel panicked"
    assert "not syncing: sysrq triggered crash" in found.cause


def test_a_guest_without_memory_is_told_to_get_more(layout: BoxLayout) -> None:
    """The out-of-memory killer's line is the cause, not the panic that follows it."""
    console = (
        b"Out of memory: Killed process 7 (python3) total-vm:9kB\n"
        b"Kernel panic - not syncing: System is deadlocked on memory\n"
    )
    found = report(layout, record={"type": "exit", "exit_code": 0}, console=console)

    assert "Killed process 7" in found.cause
    assert "memory_mib" in found.likely_causes[0]


def test_a_root_that_could_not_be_unpacked_is_told_as_too_little_memory(layout: BoxLayout) -> None:
    """The kernel's own words do not say it."""
    console = b"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
    found = report(layout, record={"type": "exit", "exit_code": 0}, console=console)

    assert "memory_mib" in found.likely_causes[0]


def test_an_agent_that_failed_is_quoted(layout: BoxLayout) -> None:
    """Its last words are on the console."""
    console = b"[guest] T+1ms: hello\n[guest] panic: OSError: no port\n"
    found = report(layout, record={"type": "exit", "exit_code": 0}, console=console)

    assert found.kind is CrashKind.GUEST_EXIT
    assert "OSError: no port" in found.cause


def test_a_guest_that_powered_off_is_not_called_a_crash_of_ours(layout: BoxLayout) -> None:
    """Code with root rights can do that."""
    found = report(layout, record={"type": "exit", "exit_code": 0}, console=b"[guest] up\n")

    assert found.kind is CrashKind.GUEST_EXIT
    assert "powered off by itself" in found.headline


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (-9, "its shim was ended by SIGKILL"),
        (-99, "its shim was ended by signal 99"),
        (1, "its shim exited with 1"),
        (None, "nobody knows how"),
    ],
)
def test_without_an_exit_file_the_shims_end_is_the_story(
    layout: BoxLayout, exit_code: int | None, words: str
) -> None:
    """It was killed, or it could not even start."""
    found = report(layout, exit_code=exit_code, stderr=b"Fatal Python error: no encodings\n")

    assert found.kind is CrashKind.SHIM_LOST
    assert words in found.headline
    assert "no encodings" in found.cause
    assert found.exit_code == exit_code


@pytest.mark.parametrize(
    ("console", "words"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"[    0.0] Linux version 6.1\n", "kernel messages only"),
        (b"[    0.0] Linux\n[guest] T+1ms: hello\n", "the guest agent was running"),
    ],
)
def test_the_evidence_says_how_far_the_guest_came(
    layout: BoxLayout, console: bytes | None, words: str
) -> None:
    """Empty, kernel only, agent seen."""
    evidence = dict(report(layout, exit_code=-9, console=console).evidence)

    assert words in evidence["console"]


@pytest.mark.parametrize(
    ("console", "words"),
    [
        (b"", "has not written one line"),
        (b"[    0.0] Linux\n", "has not reached the guest agent"),
        (b"[guest] T+1ms: hello\n", "has not said that it is ready"),
    ],
)
def test_a_timeout_tells_what_was_seen(layout: BoxLayout, console: bytes, words: str) -> None:
    """Shim, console, ready socket, stage and stages done are all in it."""
    layout.console_log.write_bytes(console)
    about = Circumstances(
        box_id="b0x",
        layout=layout,
        argv=ARGV,
        timings=[("layout", 0.25)],
        under_way=[("guest_connect", 1.5)],
    )
    found = timeout_report(about, seconds=30, shim_alive=True)

    evidence = dict(found.evidence)
    assert found.kind is CrashKind.TIMEOUT
    assert found.headline == "Box b0x failed to start: not ready within 30 s"
    assert words in found.cause
    assert evidence["shim"] == "alive"
    assert evidence["ready socket"] == "missing"
    assert evidence["stage"] == "guest_connect 1.500 s so far"
    assert evidence["stages done"] == "layout 0.250 s"


@pytest.mark.parametrize(
    ("console", "words"),
    [
        (b"", "restored from a template, and its guest has not said a word"),
        (b"[guest] T+1ms: hello\n", "has not said that it is ready"),
    ],
)
def test_a_timeout_of_a_restored_machine_blames_no_kernel(
    layout: BoxLayout, console: bytes, words: str
) -> None:
    """It has booted long ago; the template is named, and how to be rid of it."""
    layout.console_log.write_bytes(console)
    about = Circumstances(box_id="b0x", layout=layout, template="0123456789abcdef")
    found = timeout_report(about, seconds=30, shim_alive=True)

    assert words in found.cause
    assert dict(found.evidence)["template"] == "0123456789abcdef"
    if not console:
        assert any("templates rm 0123456789abcdef" in cause for cause in found.likely_causes)


def test_a_template_that_cannot_be_loaded_is_told_as_such(layout: BoxLayout) -> None:
    """QEMU's words are in it, and that the next start makes a new one."""
    layout.exit.write_text(
        json.dumps(
            {
                "type": "error",
                "exit_code": 1,
                "error_kind": "template",
                "message": "qemu-system-x86_64: load of migration failed: Invalid argument",
            }
        )
    )
    found = report(layout, exit_code=1)

    assert found.kind is CrashKind.TEMPLATE
    assert "load of migration failed" in found.cause
    assert "the next start makes a new one" in found.likely_causes[0]


def test_a_guest_that_fails_its_first_call_is_told_with_its_error(layout: BoxLayout) -> None:
    """It lives, so there is no exit to tell of."""
    layout.console_log.write_bytes(b"[guest] T+1ms: hello\n")
    about = Circumstances(box_id="b0x", layout=layout, argv=ARGV)

    found = broken_guest_report(about, GuestTimeoutError("Init: the guest did not answer"))

    assert found.kind is CrashKind.GUEST_FAULT
    assert "Init: the guest did not answer" in found.cause
    assert "agent was running" in dict(found.evidence)["console"]


def test_a_report_reads_from_top_to_bottom(layout: BoxLayout) -> None:
    """Headline, cause, likely causes, evidence with the command line, files."""
    found = report(
        layout,
        record={"type": "signal", "exit_code": 137, "signal": "SIGKILL"},
        console=b"[    0.0] Linux\n[    0.1] more\n",
        stderr=b"one\ntwo\n",
    )

    text = found.render()
    places = [
        text.index(part)
        for part in (
            "Box b0x failed to start",
            "QEMU was killed from outside",
            "Likely causes:",
            "  console ends:\n    [    0.0] Linux\n    [    0.1] more",
            "  stderr:\n    one\n    two",
            "  command line: /usr/bin/qemu-system-x86_64 -m 256M -append 'console=ttyS0 panic=-1'",
            f"  exit file: {layout.exit}",
        )
    ]
    assert places == sorted(places)
    assert found.debug_info == "one\ntwo\n"


def test_a_long_stderr_is_cut_with_the_number_of_lines_left_out(layout: BoxLayout) -> None:
    """The file has the rest."""
    stderr = b"".join(b"line %d\n" % number for number in range(40))

    evidence = dict(report(layout, exit_code=1, stderr=stderr).evidence)

    assert evidence["stderr"].endswith("line 14\n... (25 more lines)")


def test_terminal_escapes_in_the_console_are_defused(layout: BoxLayout) -> None:
    """The guest writes the console; it must not write to the reader's terminal."""
    found = report(
        layout, exit_code=-9, console=b"\x1b]0;owned\x07\x1b[2J\xe2\x80\xae[guest] \xff\n"
    )

    assert found.render().replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"type":"signal"}',
        b'{"type":"later","exit_code":1}',
        b'{"type":"error","exit_code":"1"}',
        b'{"type":"error","exit_code":true}',
        b'{"type":"error","exit_code":300}',
        b'{"type":"error","exit_code":1,"message":"' + b"x" * 70_000 + b'"}',
    ],
)
def test_an_exit_file_that_makes_no_sense_counts_as_missing(
    layout: BoxLayout, record: bytes
) -> None:
    """A report never fails because of what it reports on."""
    assert report(layout, record=record, exit_code=-9).kind is CrashKind.SHIM_LOST


def test_future_fields_of_an_exit_file_are_ignored() -> None:
    """Old and new versions read each other's files."""
    record = parse_exit_record(
        b'{"type":"error","exit_code":1,"error_kind":"new","message":5,"more":[1]}'
    )

    assert record is not None
    assert not record.unsupported
    assert record.message == ""


def test_links_fifos_and_directories_are_not_read(layout: BoxLayout, tmp_path: Path) -> None:
    """Only a regular file in its place is evidence."""
    secret = tmp_path / "secret"
    secret.write_text('{"type":"exit","exit_code":0}')
    layout.exit.symlink_to(secret)
    os.mkfifo(layout.console_log)
    layout.shim_stderr.mkdir()

    assert read_exit_file(layout.exit, Secrets()) == (None, "it is not a regular file")
    assert read_console(layout.console_log, Secrets()).size is None
    assert read_excerpt(layout.shim_stderr).size is None
    found = report(layout, exit_code=-9)
    assert found.kind is CrashKind.SHIM_LOST
    evidence = dict(found.evidence)
    assert evidence["exit file"] == "it is not a regular file"
    assert evidence["console"] == "cannot be read: it is not a regular file"
    assert evidence["stderr"] == "cannot be read: it is not a regular file"


def test_a_huge_file_is_read_at_both_ends_only(tmp_path: Path) -> None:
    """The middle is never touched."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(b"first\n")
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"last\n")

    excerpt = read_excerpt(path, head=100, tail=100)

    assert excerpt.size == (1 << 40) + 5
    assert excerpt.head.startswith(b"first\n")
    assert excerpt.tail.endswith(b"last\n")
    assert excerpt.whole is None


anything = st.one_of(st.none(), st.binary(max_size=300))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=anything, console=anything, stderr=anything, exit_code=st.integers(-70, 300))
def test_any_files_make_a_report_that_can_be_printed(
    layout: BoxLayout,
    record: bytes | None,
    console: bytes | None,
    stderr: bytes | None,
    exit_code: int,
) -> None:
    """Whatever the bytes are."""
    for path in (layout.exit, layout.console_log, layout.shim_stderr):
        path.unlink(missing_ok=True)

    text = report(
        layout, record=record, console=console, stderr=stderr, exit_code=exit_code
    ).render()

    assert text.startswith("Box b0x failed to start: ")
    assert text.replace("\n", "").replace("\t", "").isprintable()


@given(st.binary(max_size=500))
def test_excerpts_of_lines_are_printable_and_bounded(data: bytes) -> None:
    """Lines and width are both limited."""
    for lines in (first_lines(data, 3, width=20), last_lines(data, 3, width=20)):
        assert lines.replace("\n", "").replace("\t", "").isprintable()
        assert all(len(line) <= 40 for line in lines.splitlines())
    assert printable(b"a\r\nb\tc") == "a\nb\tc"


def test_a_box_whose_directory_is_gone_can_be_reported_on(layout: BoxLayout) -> None:
    """Somebody removed it while the box ran: nothing is there to be read, or to be full."""
    layout.root.rmdir()

    found = report(layout, exit_code=-9)

    assert found.kind is CrashKind.SHIM_LOST
    assert dict(found.evidence)["exit file"] == "missing"
    assert "free space" not in dict(found.evidence)
