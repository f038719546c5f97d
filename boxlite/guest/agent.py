"""Everything that serves, put together. Nothing here knows that it is PID 1."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import TYPE_CHECKING, Any

from boxlite._wire import CONNECTION_OPENING

from . import console
from .bridge import AgentPort
from .confinement import Limits
from .edges import EdgePoller
from .execution_service import ExecutionService
from .executions import Executions
from .file_service import FileService
from .guest_service import GuestService
from .outfit import Outfitter
from .place import Place
from .reaper import Reaper
from .rehearsal import rehearse
from .server import AgentServer
from .shutdown import Shutdown

if TYPE_CHECKING:
    from .namespaces import Namespaces


class Agent:
    """The gRPC server, its services, and what they stand on.

    Must be made inside the running loop, and serves as soon as it has ports.

    Args:
        namespaces: Those that an image's commands are to have; None for an agent that
            runs no images.
    """

    def __init__(self, namespaces: Namespaces | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_stray_error)
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self.poller = EdgePoller(self._loop)
        self._ports: list[AgentPort] = []
        self._opening = b""
        reaper = Reaper()
        reaper.attach(self._loop)
        executions = Executions()
        self.shutdown = Shutdown(executions)
        place, limits = Place(), Limits()
        self._outfitter = Outfitter(namespaces, place, limits)
        self._guest = GuestService(executions, self.shutdown, self._outfitter)
        self._server = AgentServer(
            [
                self._guest,
                ExecutionService(executions, self.poller, reaper, place, limits),
                FileService(place),
            ]
        )

    def add_port(self, name: str, fd: int) -> None:
        """Serve whoever connects on a port."""
        port = AgentPort(name, fd, self._server.make_protocol, self.poller, self._loop)
        port.admit(self._opening)
        self._ports.append(port)

    def admit(self, nonce: str, *, hostname: str) -> None:
        """Let hosts connect that know the nonce of this start.

        Args:
            nonce: The nonce.
            hostname: The machine's name from here on.
        """
        self._outfitter.name(hostname)
        self._opening = CONNECTION_OPENING.format(nonce=nonce).encode()
        for port in self._ports:
            port.admit(self._opening)

    def prepare(self, directory: str) -> None:
        """Mount the image, in a machine that is to be the template of its boxes.

        Args:
            directory: The image's working directory.

        Raises:
            OSError: It cannot be mounted.
        """
        self._outfitter.prepare(os.fsencode(directory))
        # Whatever this has made is in the template, too: see serve().
        gc.collect()
        gc.freeze()

    async def rehearse(self) -> None:
        """Go through a call of each kind, as if a host had made it."""
        await rehearse(self._server)

    async def run(self) -> None:
        """Serve until a shutdown is complete.

        Raises:
            Exception: What went wrong in a callback of the loop. Such an error has
                no caller, and PID 1 with a part missing is worth less than a report.
        """
        self._guest.boot_id = os.urandom(16).hex()
        ended = asyncio.ensure_future(self.shutdown.wait(self._server))
        await asyncio.wait([ended, self._failure], return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            self._failure.result()
        ended.result()

    def _on_stray_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        console.log(f"stray error: {context['message']!r}")
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)
