"""The one table from errors of grpclib, h2 and asyncio to errors of boxlite.

================================================  ==============================
what is seen                                      what is raised
================================================  ==============================
``GRPCError(DEADLINE_EXCEEDED)``                  ``GuestTimeoutError``
``GRPCError(UNIMPLEMENTED)``                      ``GuestProtocolError``
any other ``GRPCError``                           ``GuestFailedError``
anything else, and the connection is lost         the cause of the loss
``StreamTerminatedError("Protocol error")``       ``GuestProtocolError``
any other ``StreamTerminatedError``               ``GuestLostError``
h2's ``StreamClosedError``                        ``GuestLostError``
``TimeoutError``                                  ``GuestTimeoutError``
``KeyError``, ``ValueError``, ``AssertionError``  ``GuestProtocolError``
``asyncio.CancelledError``, not by Trio           ``InternalError``
any other ``Exception``                           ``InternalError``
================================================  ==============================

A boxlite error and ``trio.Cancelled`` pass unchanged. The error that was seen
is the cause of the one that is raised, unless the loss has a cause of its own.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import StreamClosedError

from boxlite._errors import (
    BoxliteError,
    GuestFailedError,
    GuestLostError,
    GuestProtocolError,
    GuestTimeoutError,
    InternalError,
)

from .text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lost import Lost

_FATE: Final = "it may or may not have been carried out"
# What grpclib and h2 raise while they read a header or a status that the guest
# made up: a missing key, a number that is none, text that is not ASCII.
_UNREADABLE: Final = (KeyError, ValueError, AssertionError)


@contextmanager
def foreign_errors_translated(call: str, lost: Lost) -> Iterator[None]:
    """Turn the errors of a call to the guest into errors of boxlite.

    Args:
        call: The name of the call, for messages.
        lost: Of the connection that the call goes over.
    """
    try:
        yield
    except BoxliteError:
        raise
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised, by its own name
        translated = translate(error, call, lost)
        raise translated from translated.__cause__ or error


def translate(error: BaseException, call: str, lost: Lost) -> BoxliteError:
    """Look an error up in the table above."""
    if isinstance(error, GRPCError):
        return _status_error(error, call)
    if lost.is_set():
        return lost.error_for(call, sent=True)
    words = shown(str(error))
    match error:
        case StreamTerminatedError() if words == "Protocol error":
            return GuestProtocolError(f"{call}: the guest broke the rules of HTTP/2")
        case StreamTerminatedError() | StreamClosedError():
            return GuestLostError(f"{call}: the guest dropped the call ({words}); {_FATE}")
        case TimeoutError():
            return GuestTimeoutError(f"{call}: the guest did not answer in time")
        case _ if isinstance(error, _UNREADABLE):
            return GuestProtocolError(
                f"{call}: the guest's answer cannot be read: {type(error).__name__}: {words}"
            )
    return InternalError(f"{call}: unexpected {type(error).__name__}: {words}")


def _status_error(error: GRPCError, call: str) -> BoxliteError:
    words = shown(error.message or "no reason given")
    if error.status is Status.DEADLINE_EXCEEDED:
        return GuestTimeoutError(f"{call}: the guest gave up: {words}")
    if error.status is Status.UNIMPLEMENTED:
        return GuestProtocolError(
            f"{call}: the guest does not know this call ({words}): its agent is not of the same"
            " version as this boxlite"
        )
    return GuestFailedError(f"{call}: {words}", status=error.status.name)
