"""The order of one execution, without any I/O. What breaks it is in the hostile tests."""

from __future__ import annotations

import pytest

from boxlite._bulk import DATA_BYTES, Channel
from boxlite._errors import ExecStartError, GuestLostError, GuestProtocolError
from boxlite._rpc.conversation import Conversation, Inbox, Phase
from boxlite._rpc.convert import (
    ExecExited,
    ExecRefused,
    ExecStarted,
    Refusal,
)
from boxlite._wire import OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES


def running() -> Conversation:
    """Return a conversation about a command that runs."""
    talk = Conversation()
    talk.hear(ExecStarted(7))
    return talk


def test_a_command_that_exits() -> None:
    """The exit is final only with the end of the call."""
    talk = running()
    talk.hear(ExecExited(3, 0))
    phases = [talk.phase]
    talk.hear_end()
    phases.append(talk.phase)

    assert phases == [Phase.LAST_WORD, Phase.ENDED]
    assert talk.over
    assert talk.exited == ExecExited(3, 0)


def test_a_command_that_is_refused() -> None:
    """The failure is what a shell would say."""
    talk = Conversation()
    talk.hear(ExecRefused(Refusal.NOT_EXECUTABLE, "x"))
    assert not talk.over
    talk.hear_end()

    assert isinstance(talk.failure, ExecStartError)
    assert talk.failure.exit_code == 126


def test_a_failure_after_the_end_changes_nothing() -> None:
    """And of two failures the first stays."""
    talk = running()
    talk.hear(ExecExited(0, 0))
    talk.hear_end()
    talk.fail(GuestLostError("late"))
    other = running()
    other.fail(GuestLostError("first"))
    other.fail(GuestLostError("second"))

    assert talk.failure is None
    assert str(other.failure) == "first"


def test_nothing_is_said_before_the_start_or_after_the_exit() -> None:
    """There is nobody to say it to."""
    talk = Conversation()
    claimed = [talk.claim_stdin(1)]
    talk.hear(ExecStarted(7))
    claimed.append(talk.claim_stdin(1))
    talk.hear(ExecExited(0, 0))
    claimed.append(talk.claim_stdin(1))

    assert claimed == [0, 1, 0]


def test_stdin_is_cut_to_the_window_and_to_frames() -> None:
    """The window shrinks by what is claimed and grows by what is granted."""
    talk = running()
    claimed = 0
    while size := talk.claim_stdin(2 * STDIN_WINDOW_BYTES):
        assert size <= DATA_BYTES
        claimed += size
    talk.hear_room(Channel.STDIN, 5)

    assert claimed == STDIN_WINDOW_BYTES
    assert talk.claim_stdin(7) == 5


def test_room_is_granted_in_large_pieces() -> None:
    """A quarter of a window at a time: one frame for several that it pays for."""
    talk = running()
    inbox = talk.inboxes[Channel.STDOUT]
    talk.hear_data(Channel.STDOUT, memoryview(bytes(OUTPUT_WINDOW_BYTES)))
    assert inbox.take(OUTPUT_WINDOW_BYTES // 4 - 1)
    due = [inbox.grant_due]
    assert inbox.take(1) == [b"\0"]
    due.append(inbox.grant_due)
    assert inbox.grant() == OUTPUT_WINDOW_BYTES // 4
    due.append(inbox.grant_due)

    assert due == [False, True, False]


def test_output_may_be_heard_before_the_start() -> None:
    """Which was sent first and takes longer to get here; a refusal after it is still one."""
    talk = Conversation()
    talk.hear_data(Channel.STDERR, memoryview(b"abc"))
    talk.hear(ExecStarted(7))

    assert talk.inboxes[Channel.STDERR].take(9) == [b"abc"]


@pytest.mark.parametrize("over", [False, True])
def test_what_the_guest_only_gets_or_sends_is_no_two_ways(over: bool) -> None:
    """And nothing of either after its last word."""
    talk = running()
    if over:
        talk.hear(ExecExited(0, 0))
        with pytest.raises(GuestProtocolError, match="1 bytes of output .* last word"):
            talk.hear_data(Channel.STDOUT, memoryview(b"x"))
        with pytest.raises(GuestProtocolError, match="room for standard input .* last word"):
            talk.hear_room(Channel.STDIN, 1)
    with pytest.raises(GuestProtocolError, match="which it only gets"):
        talk.hear_data(Channel.STDIN, memoryview(b"x"))
    with pytest.raises(GuestProtocolError, match="which it only sends"):
        talk.hear_room(Channel.STDERR, 1)


def test_an_inbox_never_holds_more_than_its_window() -> None:
    """What is taken makes room only when it is granted."""
    inbox = Inbox(window=10)
    inbox.add(memoryview(b"0123456789"))
    assert inbox.take(2) == [b"01"]
    with pytest.raises(GuestProtocolError, match="where it may send 0"):
        inbox.add(memoryview(b"x"))
    due = [inbox.grant_due]
    assert inbox.take(100) == [b"23456789"]
    due.append(inbox.grant_due)
    assert due == [False, True]
    assert inbox.grant() == 10
    inbox.add(memoryview(b"x" * 10))

    assert len(inbox) == 10
