"""The gRPC service ``boxlite.v1.Guest``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from boxlite._rpc._generated.boxlite.v1 import (
    InfoRequest,
    InfoResponse,
    PingRequest,
    PingResponse,
    SetUpRequest,
    SetUpResponse,
    ShutdownRequest,
    ShutdownResponse,
)
from boxlite._wire import PING_PAYLOAD_BYTES

from . import AGENT_VERSION, console

if TYPE_CHECKING:
    from grpclib.server import Stream

    from .executions import Executions
    from .outfit import Outfitter
    from .shutdown import Shutdown

_Request = TypeVar("_Request")


class GuestService:
    """Answers for the guest as a whole.

    Args:
        executions: What is running.
        shutdown: How everything ends.
        outfitter: Sets up what commands find.
    """

    def __init__(
        self,
        executions: Executions,
        shutdown: Shutdown,
        outfitter: Outfitter,
    ) -> None:
        self.boot_id = ""
        self._executions = executions
        self._shutdown = shutdown
        self._outfitter = outfitter

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods, as grpclib wants them."""
        unary = Cardinality.UNARY_UNARY
        return {
            "/boxlite.v1.Guest/Info": Handler(self.info, unary, InfoRequest, InfoResponse),
            "/boxlite.v1.Guest/Ping": Handler(self.ping, unary, PingRequest, PingResponse),
            "/boxlite.v1.Guest/SetUp": Handler(self.set_up, unary, SetUpRequest, SetUpResponse),
            "/boxlite.v1.Guest/Shutdown": Handler(
                self.shut_down, unary, ShutdownRequest, ShutdownResponse
            ),
        }

    async def info(self, stream: Stream[InfoRequest, InfoResponse]) -> None:
        """Say what this guest is."""
        await only_message(stream)
        await stream.send_message(
            InfoResponse(
                agent_version=AGENT_VERSION,
                kernel_release=os.uname().release,
                boot_id=self.boot_id,
                memory_total_kib=_memory_total_kib(),
            )
        )

    async def ping(self, stream: Stream[PingRequest, PingResponse]) -> None:
        """Answer at once."""
        request = await only_message(stream)
        if len(request.payload) > PING_PAYLOAD_BYTES:
            raise GRPCError(
                Status.INVALID_ARGUMENT,
                f"payload has {len(request.payload)} bytes:"
                f" at most {PING_PAYLOAD_BYTES} are allowed",
            )
        await stream.send_message(
            PingResponse(
                payload=request.payload,
                boot_id=self.boot_id,
                uptime_ms=time.monotonic_ns() // 1_000_000,
                executions=len(self._executions),
            )
        )

    async def set_up(self, stream: Stream[SetUpRequest, SetUpResponse]) -> None:
        """Give commands their root file system, volumes and limits."""
        request = await only_message(stream)
        await stream.send_message(self._outfitter.set_up(request))

    async def shut_down(self, stream: Stream[ShutdownRequest, ShutdownResponse]) -> None:
        """End everything, answer, and only then have the machine switched off."""
        request = await only_message(stream)
        console.log(f"shutting down, grace {request.grace_ms} ms")
        ended = await self._shutdown.end_executions(request.grace_ms / 1000)
        try:
            await stream.send_message(ShutdownResponse(executions_ended=ended))
            await stream.send_trailing_metadata()
        finally:
            self._shutdown.request_power_off()


async def only_message(stream: Stream[_Request, Any]) -> _Request:
    """Return the message of a call that has one.

    Raises:
        GRPCError: It has none.
    """
    message = await stream.recv_message()
    if message is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call has no message")
    return message


def _memory_total_kib() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        label, amount, _unit = file.readline().split()
    assert label == "MemTotal:"
    return int(amount)
