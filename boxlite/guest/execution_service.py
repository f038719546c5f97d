"""The gRPC service ``boxlite.v1.Execution``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from boxlite._rpc._generated.boxlite.v1 import (
    ExecRefused,
    ExecResponse,
    ExecStart,
    ExecStarted,
)

from .bulk import bulk_of
from .execution import Execution
from .guest_service import only_message
from .spawn import RefusedError, spawn

if TYPE_CHECKING:
    from grpclib.server import Stream

    from .edges import EdgePoller
    from .executions import Executions
    from .reaper import Reaper

    ExecStream = Stream[ExecStart, ExecResponse]


class ExecutionService:
    """Runs commands.

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
                self.exec, Cardinality.UNARY_STREAM, ExecStart, ExecResponse
            )
        }

    async def exec(self, stream: ExecStream) -> None:
        """Run one command for as long as its stream lives."""
        request = await only_message(stream)
        if self._executions.closed:
            raise GRPCError(Status.UNAVAILABLE, "the guest is shutting down")
        try:
            execution = self._start(request)
        except RefusedError as refused:
            answer = ExecRefused(reason=refused.reason, detail=refused.detail)
            await stream.send_message(ExecResponse(refused=answer))
            return

        ended = False
        bulk = bulk_of(stream)
        self._executions.add(execution)
        try:
            with bulk.heard_by(execution.hear):
                started = ExecStarted(pid=execution.pid)
                await stream.send_message(ExecResponse(started=started))
                await execution.report(stream.send_message, bulk)
            ended = True
        finally:
            if not ended:
                execution.signal(signal.SIGKILL)
            execution.close()
            self._executions.remove(execution)

    def _start(self, start: ExecStart) -> Execution:
        return Execution(spawn(start), start, self._poller, self._reaper)
