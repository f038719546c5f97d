"""Recognising what the host's kernel killed for memory, from its log and its counters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from boxlite._process import ProcessIdentity
from boxlite._startup import hostmemory
from boxlite._startup.hostmemory import killed_for_memory, oom_kills

if TYPE_CHECKING:
    from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
VM = ProcessIdentity(4711, start_time=100 * TICKS)
KILL = "Out of memory: Killed process 4711 (qemu-system-x86) total-vm:1kB\n SUBSYSTEM=x\n"


def group(tmp_path: Path, membership: str, counters: str, text: str) -> tuple[Path, Path]:
    """Write what the kernel would say about a control group."""
    own = tmp_path / "cgroup"
    own.write_text(membership)
    file = tmp_path / "groups" / counters
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return own, tmp_path / "groups"


@pytest.mark.parametrize(
    ("membership", "counters", "text", "expected"),
    [
        ("0::/user.slice/x\n", "user.slice/x/memory.events", "low 0\noom 3\noom_kill 2\n", 2),
        ("9:cpu:/\n4:memory:/a/b\n0::/\n", "memory/a/b/memory.oom_control", "oom_kill 5\n", 5),
        ("0::/\n", "memory.events", "oom_kill_disable 0\n", None),
        ("0::/\n", "memory.events", "nonsense\n", None),
        ("0::/elsewhere\n", "memory.events", "oom_kill 1\n", None),
    ],
)
def test_the_count_of_a_control_group_is_read(
    tmp_path: Path, membership: str, counters: str, text: str, expected: int | None
) -> None:
    """Of version 1 and 2; where there is none, that is no failure."""
    own, groups = group(tmp_path, membership, counters, text)

    assert oom_kills(own, groups) == expected
    assert oom_kills(tmp_path / "missing", groups) is None


def found(log: Path, before: int | None = None) -> str:
    """Ask about the VM."""
    return killed_for_memory([VM], kills_before=before, kernel_log=log)


@pytest.mark.parametrize(
    ("record", "is_it"),
    [
        (f"3,7,101000000,-;{KILL}", True),
        (f"3,7,101000000,-,caller=T1;Memory cgroup o{KILL[1:]}", True),
        # It was another process with that pid, long before.
        (f"3,7,50000000,-;{KILL}", False),
        (f"3,7,101000000,-;{KILL.replace('4711', '4712')}", False),
        ("6,8,101000000,-;eth0: link up\n", False),
        ("no record\n", False),
    ],
)
def test_the_kernels_log_names_the_process(tmp_path: Path, record: str, *, is_it: bool) -> None:
    """Its line is quoted."""
    log = tmp_path / "kmsg"
    log.write_text(record)

    assert ("Killed process 4711" in found(log)) == is_it


def test_without_a_log_the_counter_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the same control group, since the box was started."""
    log = tmp_path / "missing"
    monkeypatch.setattr(hostmemory, "oom_kills", lambda: 3)

    assert "killed 2 process(es)" in found(log, before=1)
    assert found(log, before=3) == ""
    assert found(log, before=None) == ""
    monkeypatch.setattr(hostmemory, "oom_kills", lambda: None)
    assert found(log, before=1) == ""


def test_a_record_that_was_overwritten_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says EPIPE and goes on with the next, and EAGAIN at the end."""
    log = tmp_path / "kmsg"
    log.write_text("")
    answers: list[bytes | Exception] = [BrokenPipeError(), f"3,7,101000000,-;{KILL}".encode()]
    asked: list[int] = []

    def read(fd: int, size: int) -> bytes:
        asked.append(size)
        if not answers:
            raise BlockingIOError
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(os, "read", read)
    assert "Killed process 4711" in found(log)
    assert found(log) == ""
    assert len(asked) == 3


def test_a_log_without_end_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written faster than it is read."""
    log = tmp_path / "kmsg"
    log.write_text("")
    asked: list[int] = []

    def read(fd: int, size: int) -> bytes:
        asked.append(size)
        return b"6,8,101000000,-;noise\n"

    monkeypatch.setattr(hostmemory, "_RECORDS", 100)
    monkeypatch.setattr(os, "read", read)
    assert found(log) == ""
    assert len(asked) == 100


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_log_is_read(tmp_path: Path, data: bytes) -> None:
    """The kernel writes it, but containers put other things in its place."""
    log = tmp_path / "kmsg"
    log.write_bytes(data)

    assert found(log) == ""
