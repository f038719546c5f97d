"""The shim's beginning: what QEMU gets, what is on disk, and what cannot be started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shim_under_test import IDENTITY, running_shim

from boxlite._process import process_start_time, read_pid_file
from boxlite._vm.shim_command import shim_command
from boxlite.shim import _spawn


def descriptors(pid: int) -> dict[int, str]:
    """Return the open descriptors of a process and what they refer to."""
    return {int(link.name): str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}


async def test_qemu_gets_its_descriptors_and_no_other(tmp_path: Path) -> None:
    """A descriptor too many would be a way out of the VM, or hide an end of file."""
    stray = os.open("/etc/passwd", os.O_RDONLY)
    try:
        async with running_shim(tmp_path, strangers=[stray]) as shim:
            await shim.vm_up()
            await shim.greet()
            of_vm = descriptors(shim.vm.pid)
            of_shim = descriptors(shim.process.pid)
    finally:
        os.close(stray)

    assert of_vm.keys() == {0, 1, 2, *shim.vm_fds}
    assert of_vm[0] == of_vm[1] == "/dev/null"
    assert of_vm[2].startswith("pipe:")
    assert "/etc/passwd" not in of_shim.values()
    # Only QEMU may hold these, or their ends of file would never come.
    assert not {of_vm[fd] for fd in shim.vm_fds} & set(of_shim.values())


@pytest.mark.parametrize("ignored", [[], ["SIGHUP", "SIGCHLD", "SIGPIPE", "SIGTERM"]])
async def test_qemu_starts_with_default_signals_and_without_core_dumps(
    tmp_path: Path, ignored: list[str]
) -> None:
    """An exec keeps ignored signals, and QEMU's stop ladder needs SIGTERM to work."""
    script = "grep -E '^Sig(Ign|Blk)' /proc/self/status >&2; ulimit -Hc >&2; exit 7"
    ignoring = (
        "import os, signal, sys\n"
        f"for name in {ignored}: signal.signal(signal.Signals[name], signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )

    def wrap(command: list[str]) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", ignoring, *command]

    async with running_shim(tmp_path, ["sh", "-c", script], wrap=wrap) as shim:
        record = await shim.ended()

    assert re.findall(r"SigBlk:\s*(\w+)", shim.stderr) == ["0" * 16]
    assert re.findall(r"SigIgn:\s*(\w+)", shim.stderr) == ["0" * 16]
    assert shim.stderr.splitlines()[-1] == "0"
    # Even where the shim was started with SIGCHLD ignored, it sees the exit code.
    assert record["exit_code"] == 7


async def test_the_pid_files_name_shim_and_vm(tmp_path: Path) -> None:
    """They make both processes findable after the host program has died."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.greet()

        of_shim = read_pid_file(shim.layout.shim_pid)
        assert of_shim is not None
        assert of_shim.pid == shim.process.pid
        assert of_shim.start_time == process_start_time(shim.process.pid)
        assert of_shim.is_alive()
        assert shim.vm.start_time == process_start_time(shim.vm.pid)
        assert shim.vm.is_alive()
        assert not list(tmp_path.glob("*.new"))


async def test_what_an_earlier_start_left_is_removed(tmp_path: Path) -> None:
    """A killed shim leaves no exit file, so an old one would be taken for its own."""
    (tmp_path / "exit").write_text('{"type": "exit", "exit_code": 0}')
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()

        assert not shim.layout.exit.exists()


@pytest.mark.parametrize(
    ("program", "exit_code", "reason"),
    [
        ("/nowhere/qemu", 127, "No such file or directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
    ],
)
async def test_a_program_that_cannot_be_executed_is_an_error(
    tmp_path: Path, program: str, exit_code: int, reason: str
) -> None:
    """The exit file names the program and the reason."""
    async with running_shim(tmp_path, [program]) as shim:
        record = await shim.ended()

    assert record.pop("time") > 0
    assert record == {
        "type": "error",
        "exit_code": exit_code,
        "message": f"cannot execute '{program}': {reason}",
        "error_kind": "unsupported",
        "ready": False,
    }
    assert not shim.vm.is_alive()


async def test_a_program_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    """The execute bit alone does not make a program."""
    fake = tmp_path / "qemu"
    fake.write_bytes(b"\x7fELF, or so it says")
    fake.chmod(0o755)
    async with running_shim(tmp_path, [str(fake)]) as shim:
        record = await shim.ended()

    assert record["exit_code"] == 126
    assert record["message"].endswith("Exec format error")


def test_no_process_for_qemu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes is the host's doing, and not a defect of the shim."""

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(_spawn, "hold_signals", lambda: None)
    before = os.listdir("/proc/self/fd")

    with pytest.raises(_spawn.CannotStartError, match="temporarily unavailable") as caught:
        _spawn.start_vm(["qemu"], [])

    assert caught.value.exit_code == 126
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (["--frobnicate"], "UsageError: unknown argument '--frobnicate'"),
        (["--close", "1"], "UsageError: --close is '1'; allowed is a descriptor above 2"),
        (["--term-seconds", "nan"], "UsageError: --term-seconds is 'nan'; allowed are 0 to 3600"),
        (["--close", "987"], "ValueError: descriptors [987] are named but not open"),
    ],
)
async def test_a_broken_command_line_is_a_panic(
    tmp_path: Path, damage: list[str], message: str
) -> None:
    """It can only be a defect of boxlite, and it is told like every other end."""
    async with running_shim(tmp_path, options=damage) as shim:
        record = await shim.ended()

    assert record["type"] == "panic"
    assert record["exit_code"] == 101
    assert record["message"].startswith(message)
    assert re.fullmatch(r"_\w+\.py:\d+", record["location"])
    assert not shim.layout.vm_pid.exists()


def test_without_a_box_directory_the_exit_code_still_tells(tmp_path: Path) -> None:
    """There is no place for an exit file; stderr says why."""
    command = shim_command(
        box_dir=tmp_path / "missing",
        control_fd=3,
        console_fd=4,
        vm_fds=[],
        identity=IDENTITY,
        detach=False,
        vm_argv=["true"],
    )
    for words in (command, [word for word in command if word != "--box-dir"]):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)

        assert done.returncode == 101
        assert re.search(r"FileNotFoundError|UsageError", done.stderr)


async def test_only_the_standard_library_is_imported(tmp_path: Path) -> None:
    """A whole life, with every late import in it, never loads the host's side or a package."""

    def wrap(command: list[str]) -> list[str]:
        return [command[0], "-X", "importtime", *command[1:]]

    async with running_shim(tmp_path, wrap=wrap) as shim:
        await shim.become_ready()
        await shim.console.send_all(b"a line\n")
        shim.process.terminate()
        assert await shim.hear() == {"type": "stop"}
        os.kill(shim.vm.pid, signal.SIGKILL)
        await shim.ended()

    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", shim.stderr, re.MULTILINE))
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert "boxlite.shim._watch" in foreign
    assert {name for name in foreign if not name.startswith("boxlite.shim")} == {"boxlite._wire"}


def test_the_command_names_everything_once(tmp_path: Path) -> None:
    """The shim is a file run in isolation; QEMU's words come last and untouched."""
    command = shim_command(
        box_dir=tmp_path,
        control_fd=10,
        console_fd=11,
        vm_fds=[12, 13],
        identity=IDENTITY,
        detach=True,
        vm_argv=["/bin/qemu", "--", "-m", "256M"],
    )

    assert command[:3] == [sys.executable, "-I", "-S"]
    assert command[3].endswith("boxlite/shim/__main__.py")
    assert command[4:] == [
        *("--box-dir", str(tmp_path), "--control", "10", "--console", "11"),
        *("--hostname", "box-1", "--machine-id", "ab" * 16, "--detach"),
        *("--close", "12", "--close", "13", "--", "/bin/qemu", "--", "-m", "256M"),
    ]
