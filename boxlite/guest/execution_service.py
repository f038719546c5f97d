"""The gRPC service ``boxlite.v1.Execution``."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from boxlite._rpc._generated.boxlite.v1 import (
    ExecRefused,
    ExecRequest,
    ExecResponse,
    ExecStarted,
)

from .bulk import bulk_of
from .execution import Execution
from .spawn import RefusedError, spawn

if TYPE_CHECKING:
    from grpclib.server import Stream

    from boxlite._rpc._generated.boxlite.v1 import ExecStart

    from .edges import EdgePoller
    from .executions import Executions
    from .reaper import Reaper

    ExecStream = Stream[ExecRequest, ExecResponse]


class ExecutionService:
    """Runs commands.

    It serves the stream itself: the generated handler for a bidirectional call
    cannot read and write at the same time.

    Args:
        executions: Where a running command is counted.
        poller: Where readiness comes from.
        reaper: Where exits come from.
    """

    def __init__(
        self,
        executions: Executions,
        poller: EdgePoller,
        reaper: Reaper,
    ) -> None:
        self._executions = executions
        self._poller = poller
        self._reaper = reaper

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods, as grpclib wants them."""
        return {
            "/boxlite.v1.Execution/Exec": Handler(
                self.exec, Cardinality.STREAM_STREAM, ExecRequest, ExecResponse
            )
        }

    async def exec(self, stream: ExecStream) -> None:
        """Run one command for as long as its stream lives."""
        request = await stream.recv_message()
        if request is None or request.start is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "the first message is not a start")
        if self._executions.closed:
            raise GRPCError(Status.UNAVAILABLE, "the guest is shutting down")
        try:
            execution = self._start(request.start)
        except RefusedError as refused:
            answer = ExecRefused(reason=refused.reason, detail=refused.detail)
            await stream.send_message(ExecResponse(refused=answer))
            return

        ended = False
        bulk = bulk_of(stream)
        requests: asyncio.Task[None] | None = None
        self._executions.add(execution)
        try:
            with bulk.heard_by(execution.hear):
                started = ExecStarted(pid=execution.pid)
                await stream.send_message(ExecResponse(started=started))
                requests = asyncio.create_task(_obey_all(stream, execution))
                await execution.report(stream.send_message, bulk, requests)
            ended = True
        finally:
            if requests is not None:
                requests.cancel()
            if not ended:
                execution.signal(signal.SIGKILL)
            execution.close()
            self._executions.remove(execution)

    def _start(self, start: ExecStart) -> Execution:
        return Execution(spawn(start), start, self._poller, self._reaper)


async def _obey_all(stream: ExecStream, execution: Execution) -> None:
    """Obey the host until it breaks a rule or leaves; never returns otherwise."""
    async for request in stream:
        execution.obey(request)
    raise GRPCError(Status.CANCELLED, "the host ended its side before the command had exited")
