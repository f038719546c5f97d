"""Every row of the table of foreign errors."""

from __future__ import annotations

import asyncio

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from h2.exceptions import StreamClosedError

from boxlite._errors import (
    BoxliteError,
    ExecStartError,
    GuestFailedError,
    GuestLostError,
    GuestProtocolError,
    GuestTimeoutError,
    InternalError,
)
from boxlite._rpc.failures import foreign_errors_translated, translate
from boxlite._rpc.lost import Lost, fresh


def lost(error: BoxliteError) -> Lost:
    """Return the end of a connection."""
    ended = Lost()
    ended.set(error)
    return ended


@pytest.mark.parametrize(
    ("seen", "raised", "words"),
    [
        (GRPCError(Status.DEADLINE_EXCEEDED), GuestTimeoutError, "gave up"),
        (GRPCError(Status.UNIMPLEMENTED, "x"), GuestProtocolError, "same version"),
        (GRPCError(Status.FAILED_PRECONDITION, "a\nb"), GuestFailedError, r"Ping: a\\nb"),
        (GRPCError(Status.INTERNAL, "x" * 9000), GuestFailedError, r"x\.\.\. \(9000 characters\)"),
        (GRPCError(Status.UNAVAILABLE), GuestFailedError, "no reason given"),
        (StreamTerminatedError("Protocol error"), GuestProtocolError, "rules of HTTP/2"),
        (StreamTerminatedError("Reset, error_code: 8"), GuestLostError, "error_code: 8.*may or"),
        (StreamClosedError(1), GuestLostError, "dropped the call"),
        (TimeoutError(), GuestTimeoutError, "did not answer in time"),
        (KeyError(":status"), GuestProtocolError, "KeyError: ':status'"),
        (UnicodeDecodeError("ascii", b"\xff", 0, 1, "x"), GuestProtocolError, "UnicodeDecodeError"),
        (AssertionError("1 != 2"), GuestProtocolError, "AssertionError: 1 != 2"),
        (asyncio.CancelledError(), InternalError, "unexpected CancelledError"),
        (ProtocolError("Outgoing stream was not ended"), InternalError, "ProtocolError"),
        (RuntimeError("Event loop is closed"), InternalError, "RuntimeError"),
    ],
)
def test_a_foreign_error_becomes_one_of_ours(
    seen: BaseException, raised: type[BoxliteError], words: str
) -> None:
    """With its name, its words and itself as the cause."""
    with (
        pytest.raises(raised, match=words) as caught,
        foreign_errors_translated("Ping", Lost()),
    ):
        raise seen

    assert type(caught.value) is raised
    assert caught.value.__cause__ is seen


@pytest.mark.parametrize(
    "seen",
    [
        StreamTerminatedError("Connection lost"),
        RuntimeError("Event loop is closed"),
        asyncio.CancelledError(),
    ],
)
def test_after_a_loss_its_cause_is_told_instead(seen: BaseException) -> None:
    """What the libraries make of a loss says nothing about it."""
    cause = ValueError("the reason")
    error = GuestProtocolError("the guest sent nonsense")
    error.__cause__ = cause
    with (
        pytest.raises(GuestProtocolError, match="nonsense") as caught,
        foreign_errors_translated("Ping", lost(error)),
    ):
        raise seen

    assert caught.value is not error
    assert caught.value.__cause__ is cause


def test_an_answer_stays_an_answer_after_a_loss() -> None:
    """The guest said it before it went."""
    error = translate(GRPCError(Status.ABORTED, "no"), "Init", lost(GuestLostError("gone")))

    assert isinstance(error, GuestFailedError)


def test_a_loss_says_whether_the_call_was_sent() -> None:
    """That is what a caller must know before trying again."""
    ended = lost(GuestLostError("gone"))

    assert str(ended.error_for("Ping", sent=False)) == "Ping: gone; it was not sent"
    assert str(ended.error_for("Ping", sent=True)) == (
        "Ping: gone; it may or may not have been carried out"
    )


async def test_ours_and_trios_pass_unchanged() -> None:
    """A cancellation that is turned into an error would be lost."""
    ours = ExecStartError("x", exit_code=127)
    with pytest.raises(ExecStartError) as caught, foreign_errors_translated("exec", Lost()):
        raise ours
    with trio.CancelScope() as scope, foreign_errors_translated("exec", Lost()):
        scope.cancel()
        await trio.sleep_forever()

    assert caught.value is ours
    assert scope.cancelled_caught


async def test_the_first_cause_of_a_loss_stays() -> None:
    """What comes after is its consequence."""
    ended = Lost()
    assert not ended.is_set()
    ended.set(GuestLostError("first"))
    ended.set(GuestLostError("second"))

    assert str(await ended.wait()) == "first"
    assert "first" in repr(ended)


def test_a_fresh_copy_has_the_evidence_and_no_traceback() -> None:
    """Also for errors whose constructor takes more than a message."""
    cause = ValueError()
    error = GuestFailedError("no", status="ABORTED")
    try:
        raise error from cause
    except GuestFailedError:
        copy = fresh(error)

    assert copy is not error
    assert str(copy) == "ABORTED: no"
    assert copy.status == "ABORTED"
    assert copy.__cause__ is cause
    assert copy.__traceback__ is None
