"""Giving commands their root file system, volumes and limits: once, before the first of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from boxlite._rpc._generated.boxlite.v1 import SetUpRequest, SetUpResponse
from boxlite._wire import VOLUMES_MAX

from . import console, kernel, modules
from .confinement import confine
from .image_root import mount_image, write_names
from .volumes import mount_volumes

if TYPE_CHECKING:
    from .confinement import Limits
    from .namespaces import Namespaces
    from .place import Place


class Outfitter:
    """Sets up what a host asks for, and only the first that does.

    Args:
        namespaces: Those that an image's commands are to have; None if there are none.
        place: Where commands run.
        limits: What they are limited to.
    """

    def __init__(self, namespaces: Namespaces | None, place: Place, limits: Limits) -> None:
        self._hostname = ""
        self._namespaces = namespaces
        self._place = place
        self._limits = limits
        self._done = False
        self._disk_bytes: int | None = None

    def name(self, hostname: str) -> None:
        """Take the machine's name, and tell programs of it.

        Raises:
            OSError: It cannot be written down.
        """
        self._hostname = hostname
        if self._disk_bytes is not None:
            with self._place.entered():
                write_names(hostname)

    def prepare(self, directory: bytes) -> None:
        """Mount the image, if that has not been done: for any box that has it.

        Args:
            directory: Its working directory, which is made if it is missing.

        Raises:
            OSError: Something cannot be mounted.
            GRPCError: This agent runs no images.
        """
        if self._disk_bytes is not None:
            return
        if self._namespaces is None:
            raise GRPCError(Status.FAILED_PRECONDITION, "this agent runs no images")
        modules.load(modules.DISKS)
        self._place.move_to(self._namespaces.mounts)
        kernel.set_namespace(self._namespaces.processes, kernel.CLONE_NEWPID)
        with self._place.furnishing():
            self._disk_bytes = mount_image(self._namespaces)
        confine()
        with self._place.entered():
            os.makedirs(directory or b"/", exist_ok=True)

    def set_up(self, request: SetUpRequest) -> SetUpResponse:
        """Do all that is asked for. It is over in a moment, so nothing else goes on meanwhile.

        Raises:
            GRPCError: Something could not be done, or a host has asked before. The guest is
                of no use then: what was done is not undone.
        """
        if self._done:
            raise GRPCError(Status.FAILED_PRECONDITION, "the guest has been set up before")
        if len(request.volumes) > VOLUMES_MAX:
            raise GRPCError(Status.INVALID_ARGUMENT, f"more than {VOLUMES_MAX} volumes")
        self._done = True
        try:
            return self._set_up(request)
        except OSError as error:
            where = os.fsdecode(error.filename or "")
            problem = f"{where}: {error.strerror}" if where else str(error.strerror)
            console.log(f"cannot be set up: {problem}")
            raise GRPCError(Status.FAILED_PRECONDITION, problem[:1000]) from None

    def _set_up(self, request: SetUpRequest) -> SetUpResponse:
        if request.volumes:
            modules.load(modules.VOLUMES)
        if request.image is not None:
            self.prepare(request.image.working_directory)
            self.name(self._hostname)
            # A template of the image may have been told of none.
            with self._place.entered():
                os.makedirs(request.image.working_directory or b"/", exist_ok=True)
        if request.volumes:
            with self._place.furnishing():
                mount_volumes(request.volumes)
        self._limits.set(request.limits)
        return SetUpResponse(disk_bytes=self._disk_bytes or 0)
