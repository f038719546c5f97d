"""Whether a connection to a guest has ended, and why."""

from __future__ import annotations

from typing import TypeVar

import trio

from boxlite._errors import BoxliteError, GuestLostError

ErrorT = TypeVar("ErrorT", bound=BoxliteError)


class Lost:
    """The end of one connection: set once, with its cause, and never taken back."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._error: BoxliteError | None = None

    def __repr__(self) -> str:
        return f"<Lost {'no' if self._error is None else repr(self._error)}>"

    @property
    def error(self) -> BoxliteError | None:
        """Why the connection ended; None while it has not."""
        return self._error

    def is_set(self) -> bool:
        """Say whether the connection has ended."""
        return self._error is not None

    async def wait(self) -> BoxliteError:
        """Return the cause once the connection has ended. A checkpoint in any case."""
        await self._event.wait()
        assert self._error is not None
        return self._error

    def set(self, error: BoxliteError) -> None:
        """Record the end. The first cause stays: later ones are its consequences."""
        if self._error is None:
            self._error = error
            self._event.set()

    def error_for(self, call: str, *, sent: bool) -> BoxliteError:
        """Return the error that a call raises because the connection has ended.

        Args:
            call: What was being done, such as ``"ping"``.
            sent: Whether the guest may have seen the call.
        """
        assert self._error is not None
        if not isinstance(self._error, GuestLostError):
            return fresh(self._error)
        fate = "it may or may not have been carried out" if sent else "it was not sent"
        error = GuestLostError(f"{call}: {self._error}; {fate}")
        error.__cause__ = self._error.__cause__
        return error


def fresh(error: ErrorT) -> ErrorT:
    """Return a copy of an error, to be raised in one more place.

    One exception object that several tasks raise would collect the tracebacks
    of all of them. The copy has the evidence and the cause of the original.
    """
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
