"""Pulling from a registry on loopback, without anything of the machine it runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from boxlite._images.endpoints import RegistryOptions
from boxlite._images.reference import Reference
from boxlite._images.registry import open_client
from boxlite._images.retry import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry_server import RegistryServer

    from boxlite._images.blobs import BlobStore
    from boxlite._images.platform import Platform
    from boxlite._images.progress import PullProgress
    from boxlite._images.pull import Pulled

#: No test waits for more than some milliseconds before something is tried again.
QUICK = Patience(backoff=0.001)


async def pull(
    store: BlobStore,
    registry: RegistryServer,
    *,
    name: str = "test/image",
    platform: Platform | None = None,
    credentials: tuple[str, str] | None = None,
    on_progress: Callable[[PullProgress], None] | None = None,
    **options: Any,  # noqa: ANN401 - those of RegistryOptions
) -> Pulled:
    """Pull an image of a registry with a client of its own."""
    chosen: dict[str, Any] = {
        "patience": QUICK,
        "docker_config": store.root / "no-such-file",
    } | options
    with trio.fail_after(30), pytest.MonkeyPatch.context() as patch:
        for variable in os.environ:
            if variable.lower().endswith("_proxy"):
                patch.delenv(variable)
        async with open_client(store, RegistryOptions(**chosen)) as client:
            return await client.pull(
                Reference.parse(f"{registry.host}/{name}"),
                platform=platform,
                credentials=credentials,
                on_progress=on_progress,
            )


def content(store: BlobStore) -> dict[str, bytes]:
    """Return everything in the store."""
    return {digest: store.path(digest).read_bytes() for digest in store.digests()}


def partials(store: BlobStore) -> list[str]:
    """Return the names of what is not whole."""
    return os.listdir(store.partials) if store.partials.exists() else []
