"""Keeps modules that the agent never uses out of its process.

Every import costs time at a cold boot and memory in every template.
"""

from __future__ import annotations

import sys


def leave_out() -> None:
    """Make later imports do without what the agent has no use for."""
    # asyncio and grpclib do without TLS when there is no ssl module; a port of the
    # machine has no use for it. Commands are other processes: they have theirs.
    sys.modules["ssl"] = None  # type: ignore[assignment]
