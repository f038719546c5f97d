"""Keeps modules that the agent has no use for out of its process.

Every import costs time at a cold boot and memory in every template. Commands are
other processes: they have all of the standard library.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def leave_out() -> None:
    """Make the imports that follow do without TLS and without package metadata."""
    # asyncio runs without an ssl module, and a port of the machine needs no TLS.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    # betterproto2 asks for its own version when it is imported. The answer is in the
    # name of a directory; the module that looks there brings the email and zip
    # packages along, a fifth of all that the agent would load.
    metadata = ModuleType("importlib.metadata")
    metadata.__spec__ = ModuleSpec("importlib.metadata", None)
    metadata.version = installed_version  # type: ignore[attr-defined]
    sys.modules["importlib.metadata"] = metadata


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution.

    Raises:
        ImportError: Nothing on ``sys.path`` says that it is installed.
    """
    start, end = f"{distribution}-", ".dist-info"
    for directory in sys.path:
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            if name.startswith(start) and name.endswith(end):
                return name[len(start) : -len(end)]
    raise ImportError(f"{distribution} has no .dist-info directory on sys.path")
