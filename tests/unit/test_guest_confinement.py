"""What commands are limited to, and what they may not do."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import GRPCError
from guest_under_test import run, running_agent, unary

from boxlite._rpc._generated.boxlite.v1 import (
    ExecStart,
    RefusalReason,
    ResourceLimit,
    SetUpRequest,
    SetUpResponse,
)
from boxlite.guest import confinement, kernel
from boxlite.guest.confinement import Limits, confine
from boxlite.guest.refused import RefusedError
from boxlite.guest.spawn import spawn

if TYPE_CHECKING:
    from grpclib.client import Channel

NO_LIMIT = (1 << 64) - 1
CORE, NOFILE = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE


@pytest.mark.parametrize(
    ("number", "soft", "hard"),
    [(NOFILE, 2, 1), (NOFILE, 0, NO_LIMIT)],
    ids=["soft above hard", "more than the kernel has"],
)
def test_a_limit_that_the_kernel_refuses_is_the_commands_refusal(
    number: int, soft: int, hard: int
) -> None:
    """Those before it in the list are put back; the agent goes on."""
    before = resource.getrlimit(CORE)
    limits = Limits()
    limits.set(
        [
            ResourceLimit(resource=CORE, soft=0, hard=before[1] & NO_LIMIT),
            ResourceLimit(resource=number, soft=soft, hard=hard),
        ]
    )

    with pytest.raises(RefusedError, match="a limit cannot be set") as caught:
        spawn(ExecStart(argv=[b"/bin/true"]), limits)
    assert caught.value.reason is RefusalReason.INVALID
    assert resource.getrlimit(CORE) == before


@pytest.mark.parametrize("number", [1000, resource.RLIMIT_CPU, resource.RLIMIT_AS])
def test_a_limit_that_the_agent_would_not_survive_is_not_taken(number: int) -> None:
    """They are its own for the moment of a start."""
    with pytest.raises(OSError, match=f"no limit {number} can be set"):
        Limits().set([ResourceLimit(resource=number, soft=1, hard=1)])


def test_a_command_is_started_with_its_limits() -> None:
    """And what it inherits is not what the agent has."""
    limits, hard = Limits(), resource.getrlimit(NOFILE)[1]
    limits.set([ResourceLimit(resource=NOFILE, soft=477, hard=hard)])
    start = ExecStart(argv=[b"/bin/sh", b"-c", b"ulimit -Sn; ulimit -Hn"])
    here = Path.cwd()
    try:
        child = spawn(start, limits)
    finally:
        os.chdir(here)
    _, status = os.waitpid(child.pid, 0)
    said = os.read(child.stdout, 100)
    for fd in (child.stdin, child.stdout, child.stderr):
        assert fd is not None
        os.close(fd)

    assert (said, status) == (f"477\n{hard}\n".encode(), 0)


def test_a_host_limits_the_commands_of_an_agent_once() -> None:
    """From the first of them on; the agent goes on with what it has."""
    hard = resource.getrlimit(NOFILE)[1]

    def request(soft: int) -> SetUpRequest:
        return SetUpRequest(limits=[ResourceLimit(resource=NOFILE, soft=soft, hard=hard)])

    async def scenario(channel: Channel) -> tuple[int, bytes, bytes]:
        await unary(channel, "Guest/SetUp", request(432), SetUpResponse)
        with pytest.raises(GRPCError, match="the guest has been set up before"):
            await unary(channel, "Guest/SetUp", request(321), SetUpResponse)
        return await run(channel, "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn")

    with running_agent() as agent:
        before = resource.prlimit(agent.process.pid, NOFILE)
        assert agent.run(scenario) == (0, f"432\n{hard}\n".encode(), b"")
        assert resource.prlimit(agent.process.pid, NOFILE) == before


def test_a_limit_of_few_files_does_not_depend_on_how_many_the_agent_has() -> None:
    """Three are enough for a command with three streams and a static program."""
    limits = Limits()
    # Only the soft one: to raise the hard one again takes a right that a test may not have.
    limits.set([ResourceLimit(resource=NOFILE, soft=8, hard=resource.getrlimit(NOFILE)[1])])
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]
    here = Path.cwd()
    try:
        child = spawn(ExecStart(argv=[b"/bin/true"]), limits)
        os.waitpid(child.pid, 0)
        for fd in (child.stdin, child.stdout, child.stderr):
            assert fd is not None
            os.close(fd)
    finally:
        os.chdir(here)
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("last", [36, 40])
def test_capabilities_are_dropped_up_to_the_last_that_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: int
) -> None:
    """Those that containers keep are not; and there is no namespace in which they come back."""
    switch = tmp_path / "max_user_namespaces"
    switch.write_text("15000")
    dropped = []

    def drop(number: int) -> bool:
        if number <= last:
            dropped.append(number)
        return number <= last

    monkeypatch.setattr(kernel, "drop_from_bounding_set", drop)
    monkeypatch.setattr(confinement, "_USER_NAMESPACES", str(switch))
    confine()

    assert switch.read_text() == "0"
    assert set(dropped) == set(range(last + 1)) - confinement.KEPT_CAPABILITIES
    # Changing the machine's mounts, its devices, its modules, its memory, its tracing.
    assert {21, 27, 16, 17, 19, 12, 2, 24} <= set(dropped)
