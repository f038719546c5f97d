"""Pulling an image: from a registry into the store, every byte of it verified.

Source: the OCI distribution specification 1.1. Importing this imports httpx, which
takes some 100 ms: it is done when the first image is pulled.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import HostError

from .conversation import Conversation
from .credentials import Credentials
from .endpoints import RegistryOptions
from .platform import Platform
from .progress import Reporter
from .pull import Pull, Pulled
from .tokens import Gatekeeper
from .transport import open_transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .blobs import BlobStore
    from .progress import PullProgress
    from .reference import Reference
    from .transport import Transport

#: What Docker takes as well: more of them only share the same line.
LAYERS_AT_ONCE: Final = 3


class RegistryClient:
    """Pulls images. Made by :func:`open_client`; any number of tasks may use it."""

    def __init__(self, store: BlobStore, transport: Transport, options: RegistryOptions) -> None:
        self._store = store
        self._transport = transport
        self._options = options
        self._gatekeeper = Gatekeeper(transport, options)
        self._limiter = trio.CapacityLimiter(LAYERS_AT_ONCE)
        self._resting: dict[str, float] = {}

    async def pull(
        self,
        reference: Reference,
        *,
        platform: Platform | None = None,
        credentials: tuple[str, str] | None = None,
        on_progress: Callable[[PullProgress], None] | None = None,
    ) -> Pulled:
        """Get an image: its manifest, its configuration, and its layers, at most 3 at once.

        What is in the store is not downloaded again; a manifest is, unless it is asked
        for by its digest, for a tag may have moved. Cancelling it leaves in the store what
        is whole, and the beginnings of what is not, from which the next call goes on.

        Args:
            reference: The image.
            platform: The machine that it is for. Default: linux/amd64.
            credentials: The user and the password for the registry. Default: what
                Docker's configuration has, if the registry asks for any.
            on_progress: Is called with what happens, at most once per 256 KiB of a layer.
                It must not block, and what it raises ends the pull.

        Raises:
            ImageNotFoundError: There is none of that name, or none for the platform.
            ImageRefusedError: It is broken, or of a kind that is not supported.
            RegistryError: The registry could not be reached, or does not let us in.
            HostError: It cannot be kept: no space, or no right.
        """
        given = None
        if credentials is not None:
            username, password = credentials
            given = Credentials(username=username, password=password, source="the caller")
        conversation = Conversation(
            self._transport,
            self._gatekeeper,
            self._options,
            reference,
            given=given,
            resting=self._resting,
        )
        reporter = Reporter(reference.familiar, on_progress)
        try:
            return await Pull(
                self._store, self._transport, conversation, self._limiter, reference, reporter
            ).run(platform or Platform(), self._options.max_image_bytes)
        except OSError as exc:
            raise HostError(
                f"the image {reference.familiar} cannot be kept in {self._store.root}:"
                f" {exc.strerror or exc}",
                fix="Check the space and the rights there.",
            ) from exc


@asynccontextmanager
async def open_client(
    store: BlobStore, options: RegistryOptions | None = None
) -> AsyncIterator[RegistryClient]:
    """Open a client for registries. Its connections are closed when the block ends.

    Args:
        store: Where images are put.
        options: Mirrors, insecure hosts and patience. Default: none, and the usual.

    Raises:
        HostError: The certificates that the options name cannot be read.
    """
    options = options or RegistryOptions()
    user_agent = await trio.to_thread.run_sync(_user_agent)
    async with open_transport(options, user_agent) as transport:
        yield RegistryClient(store, transport, options)


def _user_agent() -> str:
    try:
        return f"boxlite/{version('boxlite')}"
    except PackageNotFoundError:
        return "boxlite"  # It runs from its sources, and was never installed.
