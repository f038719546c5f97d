"""The gRPC service ``boxlite.v1.Execution``."""

from __future__ import annotations

import os
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
from .copying import CopyIn, CopyOut, copying
from .execution import Execution
from .guest_service import only_message
from .refused import RefusedError
from .spawn import spawn

if TYPE_CHECKING:
    from grpclib.server import Stream

    from .confinement import Limits
    from .edges import EdgePoller
    from .executions import Executions
    from .place import Place
    from .reaper import Reaper

    ExecStream = Stream[ExecStart, ExecResponse]


class ExecutionService:
    """Runs commands.

    Args:
        executions: Where a running command is counted.
        poller: Where readiness comes from.
        reaper: Where exits come from.
        place: Where commands run.
        limits: What they are limited to.
    """

    def __init__(
        self,
        executions: Executions,
        poller: EdgePoller,
        reaper: Reaper,
        place: Place,
        limits: Limits,
    ) -> None:
        self._executions = executions
        self._poller = poller
        self._reaper = reaper
        self._place = place
        self._limits = limits

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods, as grpclib wants them."""
        return {
            "/boxlite.v1.Execution/Exec": Handler(
                self.exec, Cardinality.UNARY_STREAM, ExecStart, ExecResponse
            )
        }

    async def exec(self, stream: ExecStream) -> None:
        """Run one command, or copy, for as long as its stream lives."""
        request = await only_message(stream)
        if self._executions.closed:
            raise GRPCError(Status.UNAVAILABLE, "the guest is shutting down")
        if request.copy is not None:
            await self._copy(stream, copying(request.copy, request.stdout_window, self._place))
            return
        try:
            execution = self._start(request)
        except RefusedError as refused:
            answer = ExecRefused(reason=refused.reason, detail=refused.detail)
            await stream.send_message(ExecResponse(refused=answer))
            return
        ended = False
        self._executions.add(execution)
        try:
            await _serve(stream, execution, execution.pid)
            ended = True
        finally:
            if not ended:
                execution.signal(signal.SIGKILL)
            execution.close()
            self._executions.remove(execution)

    @staticmethod
    async def _copy(stream: ExecStream, copy: CopyIn | CopyOut) -> None:
        try:
            await _serve(stream, copy, os.getpid())
        finally:
            copy.close()

    def _start(self, start: ExecStart) -> Execution:
        with self._place.entered():
            spawned = spawn(start, self._limits)
        return Execution(spawned, start, self._poller, self._reaper)


async def _serve(stream: ExecStream, what: Execution | CopyIn | CopyOut, pid: int) -> None:
    bulk = bulk_of(stream)
    with bulk.heard_by(what.hear):
        await stream.send_message(ExecResponse(started=ExecStarted(pid=pid)))
        await what.report(stream.send_message, bulk)
