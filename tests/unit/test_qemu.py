"""QEMU is found, is a QEMU, and is new enough; or the error says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from boxlite._errors import HostError, InvalidOptionError
from boxlite._vm import qemu
from boxlite._vm.qemu import QemuVersion, find_qemu, qemu_version

DEBIAN = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(qemu.VARIABLE, raising=False)


def program(directory: Path, text: str, *, name: str = "qemu-system-x86_64") -> Path:
    """Make a program that does what a shell script says."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_qemu_is_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an option or a variable, as a shell would find it."""
    path = program(tmp_path, "")
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")

    assert find_qemu() == path


def test_option_comes_before_variable_before_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most deliberate choice wins."""
    option, variable, on_path = (
        program(tmp_path, "", name=name) for name in ("option", "variable", qemu.PROGRAM)
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_qemu() == on_path
    monkeypatch.setenv(qemu.VARIABLE, str(variable))
    assert find_qemu() == variable
    assert find_qemu(option) == option
    assert find_qemu(Path("option")) == option


def test_missing_qemu_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that a new user meets."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="there is no qemu-system-x86_64 on PATH") as caught:
        find_qemu()

    assert "sudo apt-get install qemu-system-x86" in caught.value.fix


def test_qemu_on_path_that_is_not_executable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise "not installed" would send its owner the wrong way."""
    path = program(tmp_path, "")
    path.chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=f"{path} is not executable"):
        find_qemu()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/nowhere/qemu", "there is no such file"),
        ("no-such-qemu", "there is none on PATH"),
        ("/dev", "it is a directory"),
        ("/etc/passwd", "it is not executable"),
    ],
)
@pytest.mark.parametrize("by_variable", [True, False])
def test_bad_choice_is_the_chooser_s_error(
    monkeypatch: pytest.MonkeyPatch, name: str, why: str, by_variable: bool
) -> None:
    """It names the option or the variable, and never falls back to another QEMU."""
    if by_variable:
        monkeypatch.setenv(qemu.VARIABLE, name)
    with pytest.raises(InvalidOptionError, match=why) as caught:
        find_qemu(None if by_variable else Path(name))

    assert caught.value.field == (qemu.VARIABLE if by_variable else "qemu")


async def test_version_is_asked_once(tmp_path: Path) -> None:
    """And again when the file has changed, as after an upgrade."""
    log = tmp_path / "log"
    path = program(tmp_path, f"echo x >> {log}; echo '{DEBIAN}'")
    first = await qemu_version(path, cache_dir=tmp_path)

    assert first == QemuVersion((7, 2, 22), DEBIAN)
    assert str(first) == "7.2.22"
    assert await qemu_version(path, cache_dir=tmp_path) == first
    assert log.read_text() == "x\n"
    program(tmp_path, "echo QEMU emulator version 11.0")
    assert (await qemu_version(path, cache_dir=tmp_path)).number == (11, 0, 0)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'qemu-img version 7.2.22'", "is not a QEMU: `--version` says 'qemu-img version"),
        ("echo 'this is no QEMU emulator version 7.2'", "is not a QEMU"),
        ("", "is not a QEMU: `--version` says ''"),
        ("echo >&2 'libfoo.so: cannot open'; exit 127", "libfoo.so: cannot open"),
        ("while :; do echo flood; done", "did not answer `--version` within 10 s and 64 KiB"),
        (f"echo '{DEBIAN.replace('7.2.22', '5.2.0')}'", "is QEMU 5.2.0, and boxlite needs 6.2"),
    ],
)
async def test_unsuitable_program_is_told_apart(tmp_path: Path, script: str, said: str) -> None:
    """Each with its own words; and what is wrong is not remembered as right."""
    path = program(tmp_path, script)
    for _ in range(2):
        with pytest.raises(HostError) as caught:
            await qemu_version(path, cache_dir=tmp_path)
        assert said in caught.value.problem
        assert str(path) in caught.value.problem


async def test_program_of_another_sort_cannot_be_executed(tmp_path: Path) -> None:
    """As a binary for another processor would fail."""
    path = tmp_path / "qemu"
    path.write_bytes(b"\x7fELF, but not really")
    path.chmod(0o755)
    with pytest.raises(HostError, match="cannot be executed: Exec format error"):
        await qemu_version(path, cache_dir=tmp_path)


async def test_hanging_program_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper that waits for something must not hold up the caller for ever."""
    monkeypatch.setattr(qemu, "VERSION_SECONDS", 0.1)
    with pytest.raises(HostError, match=r"within 0\.1 s"):
        await qemu_version(program(tmp_path, "sleep 1000"), cache_dir=tmp_path)


@given(st.text(max_size=300))
def test_any_text_is_a_version_or_not(text: str) -> None:
    """Parsing never fails, and what it keeps can be printed."""
    for line in (text, f"QEMU emulator version 7.2{text}"):
        found = qemu._parsed(line)
        assert found is None or (found.text.isprintable() and len(found.text) <= 200)


@pytest.mark.skipif(shutil.which(qemu.PROGRAM) is None, reason="QEMU is not installed")
async def test_installed_qemu_is_accepted(tmp_path: Path) -> None:
    """The real program speaks as the parser expects."""
    version = await qemu_version(find_qemu(), cache_dir=tmp_path)

    assert version.number >= qemu.OLDEST
    assert version.text.startswith("QEMU emulator version ")
