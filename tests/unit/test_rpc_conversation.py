"""The order of one execution, without any I/O. What breaks it is in the hostile tests."""

from __future__ import annotations

import pytest

from boxlite._errors import ExecStartError, GuestLostError, GuestProtocolError
from boxlite._rpc.conversation import ACTIONS, Conversation, Inbox, Phase
from boxlite._rpc.convert import (
    ExecExited,
    ExecRefused,
    ExecStarted,
    Grant,
    Output,
    Refusal,
    Signal,
    Stdin,
    StdinWindow,
)
from boxlite._wire import CHUNK_BYTES, OUTPUT_WINDOW_BYTES


def running(stdin_window: int = 100) -> Conversation:
    """Return a conversation about a command that runs."""
    talk = Conversation()
    talk.hear(ExecStarted(7, stdin_window))
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
    assert not talk.can_say
    talk.hear(ExecStarted(7, 10))
    talk.say(Signal(1))
    talk.hear(ExecExited(0, 0))

    assert not talk.can_say
    assert talk.next_action() is None
    assert talk.say_stdin(memoryview(b"x")) == 0


def test_the_queue_is_bounded() -> None:
    """A caller waits rather than pile up signals."""
    talk = running()
    for number in range(ACTIONS):
        assert talk.can_say
        talk.say(Signal(number + 1))

    assert not talk.can_say
    assert talk.say_stdin(memoryview(b"x")) == 0
    assert talk.next_action() == Signal(1)
    assert talk.can_say


def test_stdin_is_cut_to_the_window_and_to_chunks() -> None:
    """The window shrinks by what is queued and grows by what is granted."""
    talk = running(stdin_window=CHUNK_BYTES + 2)
    data = memoryview(bytes(2 * CHUNK_BYTES))
    assert talk.say_stdin(data) == CHUNK_BYTES
    assert talk.say_stdin(data) == 2
    assert talk.say_stdin(data) == 0
    talk.hear(StdinWindow(5))

    assert talk.say_stdin(data) == 5
    assert talk.next_action() == Stdin(bytes(CHUNK_BYTES))
    assert talk.next_action() == Stdin(bytes(2))


def test_room_is_granted_in_large_pieces_and_before_anything_else() -> None:
    """Half a window at a time: one message for several that it pays for."""
    talk = running()
    talk.say(Signal(1))
    for _ in range(OUTPUT_WINDOW_BYTES // CHUNK_BYTES):
        talk.hear(Output("stdout", bytes(CHUNK_BYTES)))
    talk.hear(Output("stderr", b"abc"))
    assert talk.inboxes["stdout"].take(OUTPUT_WINDOW_BYTES // 2 - 1) != b""
    assert talk.inboxes["stderr"].take(2) == b"ab"
    assert talk.next_action() == Signal(1)
    assert talk.next_action() is None
    assert talk.inboxes["stdout"].take(1) == b"\0"

    assert talk.next_action() == Grant(OUTPUT_WINDOW_BYTES // 2, 2)
    assert talk.next_action() is None


def test_an_inbox_never_holds_more_than_its_window() -> None:
    """What is taken makes room only when it is granted."""
    inbox = Inbox(window=10)
    inbox.add(b"0123456789")
    assert inbox.take(4) == b"0123"
    with pytest.raises(GuestProtocolError, match="where it may send 0"):
        inbox.add(b"x")
    due = [inbox.grant_due]
    assert inbox.take(100) == b"456789"
    due.append(inbox.grant_due)
    assert due == [False, True]
    assert inbox.grant() == 10
    inbox.add(b"x" * 10)

    assert len(inbox) == 10
