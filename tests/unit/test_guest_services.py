"""The guest as a whole: identity, pings, limits, and the way down."""

from __future__ import annotations

import json
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from guest_under_test import (
    SECONDS,
    AgentUnderTest,
    ProcessWatch,
    execution,
    ping,
    run,
    running_agent,
    start_request,
    unary,
)

from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._wire import MAX_MESSAGE_BYTES, PING_PAYLOAD_BYTES
from boxlite.guest import AGENT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpclib.client import Channel


@pytest.fixture
def agent() -> Iterator[AgentUnderTest]:
    """An agent for one test: these change it for good."""
    with running_agent() as running:
        yield running


def output(agent: AgentUnderTest) -> str:
    """Wait until the agent has ended by itself; return what it wrote to its console."""
    text, _ = agent.process.communicate(timeout=SECONDS)
    assert agent.process.returncode == 0
    return text


async def shut_down(channel: Channel, grace_ms: int) -> int:
    """Call ``Guest.Shutdown``."""
    request = wire.ShutdownRequest(grace_ms=grace_ms)
    answer = await unary(channel, "Guest/Shutdown", request, wire.ShutdownResponse)
    return answer.executions_ended


def test_the_agent_announces_its_version(agent: AgentUnderTest) -> None:
    """It is the version of the package, although the guest has no package metadata."""
    assert version("boxlite") == AGENT_VERSION

    assert agent.announcement == {"type": "waiting", "version": AGENT_VERSION}


def test_a_guest_says_what_it_is_as_often_as_it_is_asked(agent: AgentUnderTest) -> None:
    """The boot id is the one of pings."""

    async def scenario(channel: Channel) -> None:
        answer = await unary(channel, "Guest/Info", wire.InfoRequest(), wire.InfoResponse)
        assert answer.agent_version == AGENT_VERSION
        assert answer.kernel_release
        assert answer.memory_total_kib > 0
        assert len(answer.boot_id) == 32
        assert (await ping(channel)).boot_id == answer.boot_id
        again = await unary(channel, "Guest/Info", wire.InfoRequest(), wire.InfoResponse)
        assert again == answer

    agent.run(scenario)


def test_a_ping_echoes_and_counts(agent: AgentUnderTest) -> None:
    """It tells how many commands are running, and refuses to carry data."""

    async def scenario(channel: Channel) -> None:
        answer = await ping(channel, b"x" * PING_PAYLOAD_BYTES)
        assert answer.payload == b"x" * PING_PAYLOAD_BYTES
        assert answer.executions == 0
        async with execution(channel, start_request("cat")) as call:
            await call.until(lambda: call.pid != 0)
            later = await ping(channel)
            assert later.executions == 1
            assert later.uptime_ms >= answer.uptime_ms
            call.stdin_end()
            await call.finish()
        with pytest.raises(GRPCError, match="1025 bytes"):
            await ping(channel, b"x" * (PING_PAYLOAD_BYTES + 1))

    agent.run(scenario)


def test_a_message_that_is_too_large_ends_its_call_only(agent: AgentUnderTest) -> None:
    """It is refused by the length it announces: its bytes never have to come."""

    async def scenario(channel: Channel) -> None:
        stream = channel.request(
            "/boxlite.v1.Guest/Ping",
            Cardinality.UNARY_UNARY,
            wire.PingRequest,
            wire.PingResponse,
        )
        with pytest.raises(GRPCError, match="4294967295 bytes") as caught:
            async with stream:
                await stream.send_request()
                await stream._stream.send_data(b"\0\xff\xff\xff\xff")
                await stream.recv_message()
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        with pytest.raises(GRPCError, match="at most 1024"):  # Large, but not too large to read.
            await ping(channel, bytes(MAX_MESSAGE_BYTES - 100))
        assert (await ping(channel, b"still here")).payload == b"still here"

    agent.run(scenario)


def test_shutdown_lets_commands_end_in_their_own_way(agent: AgentUnderTest) -> None:
    """SIGTERM comes first, and the answer and every exit arrive before the power goes."""

    async def scenario(channel: Channel) -> None:
        script = "trap 'echo bye; exit 4' TERM; echo hi; read forever"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            await call.until(lambda: call.stdout == b"hi\n")
            assert await shut_down(channel, 10_000) == 1
            assert await call.finish() == (4, b"hi\nbye\n", b"")

    agent.run(scenario)
    assert output(agent).endswith("switched off\n")


def test_shutdown_kills_what_does_not_end(agent: AgentUnderTest) -> None:
    """The grace period is all that a command that ignores SIGTERM gets."""

    async def scenario(channel: Channel) -> None:
        script = "trap '' TERM; echo hi; read forever"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            await call.until(lambda: call.stdout == b"hi\n")
            assert await shut_down(channel, 20) == 1
            code, _out, _err = await call.finish()
            assert code == -signal.SIGKILL

    agent.run(scenario)
    assert output(agent).endswith("switched off\n")


def test_nothing_starts_any_more_during_a_shutdown(agent: AgentUnderTest) -> None:
    """A command that started after the others were ended would lose its data."""

    async def scenario(channel: Channel) -> None:
        script = "trap '' TERM; echo hi; read forever"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            await call.until(lambda: call.stdout == b"hi\n")
            stream = channel.request(
                "/boxlite.v1.Guest/Shutdown",
                Cardinality.UNARY_UNARY,
                wire.ShutdownRequest,
                wire.ShutdownResponse,
            )
            async with stream:
                await stream.send_message(wire.ShutdownRequest(grace_ms=10_000), end=True)
                with pytest.raises(GRPCError, match="shutting down"):
                    await run(channel, "true")
                call.signal(signal.SIGKILL)
                await call.finish()
                await stream.recv_message()

    agent.run(scenario)
    assert output(agent).endswith("switched off\n")


def test_a_stop_on_the_control_port_ends_everything(agent: AgentUnderTest) -> None:
    """There is no grace period: whoever asks this way is about to pull the plug."""
    watches = []

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("sleep", "1000")) as call:
            await call.until(lambda: call.pid != 0)
            watches.append(ProcessWatch(call.pid))
            for line in (b"not for the agent\n", json.dumps({"type": "stop"}).encode() + b"\n"):
                agent.control.sendall(line)
            await call.finish()

    agent.run(scenario)
    assert "ignored a line on the control port: it is not JSON" in output(agent)
    watches[0].wait()
