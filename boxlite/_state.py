"""The states of a box, and which may follow which.

::

    configured -> starting                       it is being started
    starting   -> running | failed | stopping    it is ready, or not, or cancelled
    running    -> stopping | failed              its block ends, or it dies
    stopping   -> stopped | failed               nothing is left of it, or something is
    stopped    -> starting                       and once more
    failed     -> starting
"""

from __future__ import annotations

import enum
from typing import Final

from ._errors import StateError


class BoxState(enum.Enum):
    """What a box is doing."""

    #: It is known what it is to be, and nothing of it exists.
    CONFIGURED = "configured"
    #: Its stages run; the guest is not ready yet.
    STARTING = "starting"
    #: It takes commands.
    RUNNING = "running"
    #: It is being taken down.
    STOPPING = "stopping"
    #: Nothing of it is left but what it wrote on purpose.
    STOPPED = "stopped"
    #: It did not become ready, or it died; a crash report tells why.
    FAILED = "failed"


_FOLLOWERS: Final = {
    BoxState.CONFIGURED: {BoxState.STARTING},
    BoxState.STARTING: {BoxState.RUNNING, BoxState.STOPPING, BoxState.FAILED},
    BoxState.RUNNING: {BoxState.STOPPING, BoxState.FAILED},
    BoxState.STOPPING: {BoxState.STOPPED, BoxState.FAILED},
    BoxState.STOPPED: {BoxState.STARTING},
    BoxState.FAILED: {BoxState.STARTING},
}


def may_follow(state: BoxState, following: BoxState) -> bool:
    """Tell whether a box in one state may get into another next."""
    return following in _FOLLOWERS[state]


class Lifecycle:
    """The state of one box, which changes only as the diagram says.

    Attributes:
        state: The present one.
    """

    def __init__(self) -> None:
        self.state = BoxState.CONFIGURED

    def __repr__(self) -> str:
        return f"<Lifecycle {self.state.value}>"

    def advance(self, following: BoxState, *, to: str) -> None:
        """Get into another state.

        Args:
            following: Which.
            to: What is being done, for the error: "start the box".

        Raises:
            StateError: The diagram does not allow it; nothing has changed.
        """
        if not may_follow(self.state, following):
            allowed = [state.value for state in BoxState if may_follow(state, following)]
            required = " or ".join(allowed) or "never"
            raise StateError(to, required=required, actual=self.state.value)
        self.state = following

    def fail(self) -> None:
        """Note that the box has died or never became ready. Noted once, the first word counts."""
        if may_follow(self.state, BoxState.FAILED):
            self.state = BoxState.FAILED

    @property
    def failed(self) -> bool:
        """Whether it is a failed box."""
        return self.state is BoxState.FAILED
