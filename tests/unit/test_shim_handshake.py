"""The control port's protocol without I/O: any bytes, in any portions."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from boxlite._wire import CONTROL_LINE_BYTES, ENTROPY_BYTES
from boxlite.shim._handshake import (
    GUEST_BYTES,
    Action,
    Announce,
    Handshake,
    Note,
    Save,
    Send,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

NONCE = "0123456789abcdef0123456789abcdef"
WAITING = b'{"type": "waiting", "version": "1"}\n'
READY = b'{"type": "ready", "nonce": "%s"}\n' % NONCE.encode()
HELLO = Send(
    json.dumps(
        {"type": "hello", "nonce": NONCE, "unix_time_ns": 42, "entropy": "ab" * ENTROPY_BYTES}
    ).encode()
    + b"\n"
)

lines = st.one_of(
    st.sampled_from([WAITING, READY, b"\n", b"[" * 3000 + b"\n", b"{" * 5000 + b"\n"]),
    st.sampled_from([b'{"type": ["waiting"]}\n', b'{"type": "ready", "nonce": {}}\n']),
    st.binary(max_size=200),
    st.integers(CONTROL_LINE_BYTES - 2, CONTROL_LINE_BYTES + 2).map(lambda n: b" " * n + b"\n"),
    st.integers(1, 2 * GUEST_BYTES).map(lambda n: b"x" * n),
)
conversations = st.lists(lines, max_size=12).map(b"".join)


def handshake(*, begun: bool = True) -> Handshake:
    """Return a handshake whose clock and entropy are known."""
    made = Handshake(clock=lambda: 42, entropy=lambda size: b"\xab" * size)
    if begun:
        assert made.begin(NONCE) == []
    return made


def portions(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut bytes at the given places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def test_the_exchange_of_an_honest_guest() -> None:
    """Waiting is answered by hello, and ready is announced."""
    shake = handshake()

    assert shake.receive(WAITING) == [HELLO]
    assert not shake.ready
    assert shake.receive(READY) == [Announce(NONCE)]
    assert shake.ready


def test_a_guest_that_is_quicker_than_the_nonce_is_greeted_late() -> None:
    """Without the nonce there is nothing to greet it with."""
    shake = handshake(begun=False)

    assert shake.receive(WAITING) == []
    assert shake.begin(NONCE) == [HELLO]
    assert shake.receive(READY) == [Announce(NONCE)]


@pytest.mark.parametrize("nonce_first", [True, False])
def test_a_restored_guest_is_greeted_when_it_runs(nonce_first: bool) -> None:
    """It said that it waits before it was saved, and does not say so again."""
    shake = handshake(begun=nonce_first)
    actions = [shake.resume(), [] if nonce_first else shake.begin(NONCE)]

    assert actions == ([[HELLO], []] if nonce_first else [[], [HELLO]])
    assert shake.receive(READY) == [Announce(NONCE)]
    assert shake.ready


def test_a_guest_that_becomes_a_template_is_never_greeted() -> None:
    """It is saved as soon as it waits, and whatever it says then is not believed."""
    shake = Handshake(saving=True)
    assert shake.begin(NONCE) == []

    assert shake.receive(WAITING) == [Save()]
    (note,) = shake.receive(READY.replace(NONCE.encode(), b"0" * 32))
    assert isinstance(note, Note)
    assert not shake.ready


@pytest.mark.parametrize("nonce_first", [True, False])
def test_a_guest_that_is_to_prepare_is_saved_when_it_waits_again(nonce_first: bool) -> None:
    """It is asked once, when it runs; not greeted; and saved when nothing is under way again."""
    shake = Handshake(saving=True, prepare='/a "b"\n')
    if nonce_first:
        assert shake.begin(NONCE) == []
    (order,) = shake.resume()
    assert isinstance(order, Send)
    assert json.loads(order.line) == {"type": "prepare", "directory": '/a "b"\n'}
    assert order.line.count(b"\n") == 1
    if not nonce_first:
        assert shake.begin(NONCE) == []

    assert shake.receive(WAITING) == [Save()]
    assert shake.receive(WAITING * 100) == [Save()] * 100, "the shim saves once"
    assert not shake.ready


def test_a_guest_that_says_early_that_it_waits_is_not_saved() -> None:
    """Before it was asked it can have prepared nothing."""
    shake = Handshake(saving=True, prepare="/")
    shake.begin(NONCE)

    assert Save() not in shake.receive(WAITING)
    shake.resume()
    assert shake.receive(WAITING) == [Save()]


def test_an_order_to_prepare_fits_into_a_line_of_the_guests() -> None:
    """At the largest that a host asks for, each character six bytes as JSON has it."""
    shake = Handshake(saving=True, prepare="/" + "\u1234" * 340)
    (order,) = shake.resume()

    assert isinstance(order, Send)
    assert len(order.line) <= CONTROL_LINE_BYTES


def test_the_greeting_carries_the_identity() -> None:
    """What the guest is told it is comes beside time and entropy."""
    shake = Handshake(identity={"hostname": "box-1", "machine_id": "ab" * 16})
    shake.begin(NONCE)
    (greeting,) = shake.receive(WAITING)

    assert isinstance(greeting, Send)
    message = json.loads(greeting.line)
    assert (message["hostname"], message["machine_id"]) == ("box-1", "ab" * 16)


def test_ready_before_waiting_is_not_believed() -> None:
    """It cannot be the answer to a greeting that was not sent."""
    (note,) = handshake().receive(READY)

    assert isinstance(note, Note)


def test_after_ready_nothing_is_due() -> None:
    """A second announcement would reach a host that has long stopped listening."""
    shake = handshake()
    shake.receive(WAITING + READY)

    (note,) = shake.receive(READY + WAITING + READY)

    assert isinstance(note, Note)


@pytest.mark.parametrize("nonce", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "\n"])
def test_a_nonce_that_the_agent_would_refuse_is_refused_here(nonce: str) -> None:
    """The host wrote it, so it is the host's defect and not the guest's."""
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        handshake(begun=False).begin(nonce)


def test_a_line_may_have_exactly_the_agreed_length() -> None:
    """The limit counts the line without its newline, as the agent does."""
    at_limit = WAITING.strip().ljust(CONTROL_LINE_BYTES) + b"\n"

    assert handshake().receive(at_limit) == [HELLO]
    (note,) = handshake().receive(b" " + at_limit)
    assert isinstance(note, Note)


@given(data=conversations, cuts=st.lists(st.integers(0, 1 << 20), max_size=20))
def test_portions_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """A stream has no messages: how it is cut must not change what is done."""
    whole = handshake().receive(data)
    shake = handshake()

    assert [action for part in portions(data, cuts) for action in shake.receive(part)] == whole


@given(data=st.lists(conversations, max_size=4), begun=st.booleans())
def test_any_bytes_lead_to_bounded_sensible_actions(data: list[bytes], begun: bool) -> None:
    """No bytes raise; notes are few, printable and short; ready is announced at most once."""
    shake = handshake(begun=begun)
    actions: list[Action] = []
    for part in data:
        actions += shake.receive(part)

        assert len(shake._partial) <= CONTROL_LINE_BYTES

    notes = [action.text for action in actions if isinstance(action, Note)]
    announced = [action for action in actions if isinstance(action, Announce)]
    assert len(notes) <= 5
    assert all(note.isprintable() and len(note) < 400 for note in notes)
    assert len(announced) == shake.ready
    assert not shake.ready or begun
    assert len(actions) <= GUEST_BYTES // len(b'{"type":"waiting"}\n') + 6


@given(before=st.binary(max_size=300))
def test_only_the_nonce_makes_a_guest_ready(before: bytes) -> None:
    """Whatever was said before, the true answer after a greeting is taken."""
    shake = handshake()
    shake.receive(before + b"\n" + WAITING)
    if not shake.ready:
        assert Announce(NONCE) in shake.receive(READY)

    assert shake.ready


def test_a_flood_exhausts_the_budget() -> None:
    """After it nothing is even looked at."""
    shake = handshake()

    (note,) = shake.receive(b"x" * GUEST_BYTES)[1:]

    assert isinstance(note, Note)
    assert shake.exhausted
    assert shake.receive(b"\n" + WAITING + READY) == []
