"""Any bytes of a guest become data that was checked, or the one error that says why not."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, strategies as st

from boxlite._command import Command, TerminalSize
from boxlite._errors import GuestProtocolError, InvalidOptionError
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.channel import _StrictCodec
from boxlite._rpc.convert import (
    CopyReport,
    ExecEvent,
    ExecExited,
    ExecRefused,
    ExecStarted,
    GuestInfo,
    Pong,
    Refusal,
    exec_event,
    exec_start,
    executions_ended,
    guest_info,
    pong,
)
from boxlite._rpc.strict import check_message
from boxlite._rpc.text import shown
from boxlite._wire import (
    MAX_MESSAGE_BYTES,
    OUTPUT_WINDOW_BYTES,
    PING_PAYLOAD_BYTES,
)

ANSWERS: list[Any] = [
    wire.InfoResponse,
    wire.PingResponse,
    wire.ShutdownResponse,
    wire.ExecResponse,
]
CODEC = _StrictCodec()

hexadecimal = st.text("0123456789abcdef", min_size=32, max_size=32)
names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=65)
uint32 = st.integers(0, (1 << 32) - 1)
detail = st.text(max_size=4096)
signals = st.integers(0, 64)

events: st.SearchStrategy[tuple[wire.ExecResponse, ExecEvent]] = st.one_of(
    st.builds(
        lambda pid: (wire.ExecResponse(started=wire.ExecStarted(pid=pid)), ExecStarted(pid)),
        st.integers(1, 1 << 22),
    ),
    st.builds(
        lambda reason, words: (
            wire.ExecResponse(
                refused=wire.ExecRefused(reason=wire.RefusalReason[reason.name], detail=words)
            ),
            ExecRefused(reason, words),
        ),
        st.sampled_from(Refusal),
        detail,
    ),
    st.builds(
        lambda error, path, problem, skipped: (
            wire.ExecResponse(
                exited=wire.ExecExited(
                    copy=wire.CopyReport(
                        error=error,
                        path=path,
                        problem=problem,
                        skipped=len(skipped),
                        skipped_names=b"".join(name + b"\0" for name in skipped),
                    )
                )
            ),
            ExecExited(
                0,
                0,
                CopyReport(
                    error=error,
                    path=path,
                    problem=problem,
                    skipped=len(skipped),
                    skipped_names=tuple(skipped),
                ),
            ),
        ),
        st.sampled_from([0, *errno.errorcode]),
        st.binary(max_size=4096),
        detail,
        st.lists(st.binary(max_size=20).map(lambda name: name.replace(b"\0", b"")), max_size=100),
    ),
    st.builds(
        lambda code, signal: (
            wire.ExecResponse(exited=wire.ExecExited(exit_code=code, signal=signal)),
            ExecExited(code, signal),
        ),
        st.integers(0, 255),
        signals,
    ),
)


@given(event=events)
def test_an_event_that_is_allowed_arrives(event: tuple[wire.ExecResponse, ExecEvent]) -> None:
    """Over the wire and through both checks, at the limits too."""
    sent, expected = event
    received = CODEC.decode(bytes(sent), wire.ExecResponse)

    assert exec_event(received) == expected


@given(
    version=names,
    release=names,
    boot_id=hexadecimal,
    memory=st.integers(1, 1 << 42),
)
def test_what_a_guest_says_about_itself_arrives(
    version: str, release: str, boot_id: str, memory: int
) -> None:
    """If it can be printed."""
    sent = wire.InfoResponse(
        agent_version=version, kernel_release=release, boot_id=boot_id, memory_total_kib=memory
    )
    info = guest_info(CODEC.decode(bytes(sent), wire.InfoResponse))

    assert info == GuestInfo(
        agent_version=version, kernel_release=release, boot_id=boot_id, memory_total_kib=memory
    )


@given(
    payload=st.binary(max_size=PING_PAYLOAD_BYTES),
    boot_id=hexadecimal,
    uptime=st.integers(0, (1 << 64) - 1),
    executions=uint32,
)
def test_a_pong_arrives(payload: bytes, boot_id: str, uptime: int, executions: int) -> None:
    """With the payload that was sent."""
    sent = wire.PingResponse(
        payload=payload, boot_id=boot_id, uptime_ms=uptime, executions=executions
    )
    answer = pong(CODEC.decode(bytes(sent), wire.PingResponse), payload)

    assert answer == Pong(payload=payload, boot_id=boot_id, uptime_ms=uptime, executions=executions)


@given(data=st.binary(max_size=100), answer=st.sampled_from(ANSWERS))
def test_any_bytes_are_data_or_the_guests_fault(data: bytes, answer: Any) -> None:  # noqa: ANN401
    """No other exception, whatever betterproto2 would have made of them."""
    try:
        _convert(CODEC.decode(data, answer))
    except GuestProtocolError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right


@given(event=events, data=st.data())
def test_a_damaged_message_is_data_or_the_guests_fault(
    event: tuple[wire.ExecResponse, ExecEvent], data: st.DataObject
) -> None:
    """One byte changed, and the rest as an agent would send it."""
    damaged = bytearray(bytes(event[0])[:200])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        _convert(CODEC.decode(bytes(damaged), wire.ExecResponse))
    except GuestProtocolError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right


@given(event=events, data=st.data())
def test_a_message_that_is_cut_off_is_refused(
    event: tuple[wire.ExecResponse, ExecEvent], data: st.DataObject
) -> None:
    """betterproto2 would take half of the output for all of it."""
    whole = bytes(event[0])
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    with pytest.raises(GuestProtocolError):
        exec_event(CODEC.decode(cut, wire.ExecResponse))


@given(first=events, second=events)
def test_two_events_in_one_message_are_refused(
    first: tuple[wire.ExecResponse, ExecEvent], second: tuple[wire.ExecResponse, ExecEvent]
) -> None:
    """Whether they are of one kind or of two."""
    with pytest.raises(GuestProtocolError, match="more than one event"):
        CODEC.decode(bytes(first[0]) + bytes(second[0]), wire.ExecResponse)


def test_two_events_are_refused_without_the_wire_too() -> None:
    """The conversion does not rely on the check before it."""
    with pytest.raises(GuestProtocolError, match="started and exited"):
        exec_event(wire.ExecResponse(started=wire.ExecStarted(pid=1), exited=wire.ExecExited()))


def test_a_member_of_another_type_is_refused() -> None:
    """A generated message takes any object."""
    with pytest.raises(GuestProtocolError, match="started of another type"):
        exec_event(wire.ExecResponse(started=7))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "data", "words"),
    [
        (wire.PingResponse, b"\x0a", "number without an end"),
        (wire.PingResponse, b"\x08\x01", "payload of wire type 0"),
        (wire.PingResponse, b"\x0d1234", "payload of wire type 5"),
        (wire.PingResponse, b"\x18\x01\x18\x02", "more than one uptime_ms"),
        (wire.PingResponse, b"\x00", "unknown field 0"),
        (wire.ExecResponse, b"\x1a\x02\x78\x01", "ExecExited has an unknown field 15"),
        (wire.ExecResponse, b"\x1a\x02\x08\x80", "ExecExited has a number without an end"),
    ],
)
def test_a_form_that_no_agent_sends_is_named(answer: Any, data: bytes, words: str) -> None:  # noqa: ANN401
    """The message, the field and what is wrong."""
    with pytest.raises(GuestProtocolError, match=words):
        check_message(data, answer)


def test_a_megabyte_of_fields_is_refused_at_the_first_that_repeats() -> None:
    """betterproto2 copies all of them for each one: hours."""
    with pytest.raises(GuestProtocolError, match="unknown field 15"):
        check_message(b"\x78\x01" * (MAX_MESSAGE_BYTES // 2), wire.PingResponse)


@pytest.mark.parametrize(
    "values",
    [
        {"agent_version": ""},
        {"agent_version": "1\x1b[31m"},
        {"kernel_release": "x" * 66},
        {"kernel_release": "6.1\u202e"},
        {"boot_id": "A" * 32},
        {"boot_id": "a" * 31},
        {"memory_total_kib": 0},
        {"memory_total_kib": 1 << 63},
    ],
)
def test_a_guest_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    """The message names the field and shows no control character."""
    given_values: dict[str, Any] = {
        "agent_version": "0.1.0",
        "kernel_release": "6.1.0",
        "boot_id": "a" * 32,
        "memory_total_kib": 1,
        **values,
    }
    with pytest.raises(GuestProtocolError, match=next(iter(values))) as caught:
        guest_info(wire.InfoResponse(**given_values))

    assert str(caught.value).isprintable()


def test_a_count_beyond_its_type_is_refused() -> None:
    """betterproto2 would drop the bits that are too many, and so find a value in range."""
    assert executions_ended(CODEC.decode(b"\x08\x03", wire.ShutdownResponse)) == 3
    with pytest.raises(GuestProtocolError, match="executions_ended of 4294967296"):
        CODEC.decode(b"\x08\x80\x80\x80\x80\x10", wire.ShutdownResponse)
    with pytest.raises(GuestProtocolError, match="uptime_ms of"):
        CODEC.decode(b"\x18" + b"\xff" * 9 + b"\x7f", wire.PingResponse)
    with pytest.raises(GuestProtocolError, match="-1 executions"):
        executions_ended(wire.ShutdownResponse(executions_ended=-1))


@given(text=st.text(), limit=st.integers(1, 50))
def test_shown_text_is_printable_and_bounded(text: str, limit: int) -> None:
    """Ten characters stand for one at most, and a note says that text is missing."""
    result = shown(text, limit)

    assert result.isprintable()
    assert len(result) <= 10 * limit + 40
    assert (result == text) == (text.isprintable() and len(text) <= limit)


@given(
    argv=st.lists(st.binary(max_size=20), min_size=1, max_size=5).map(tuple),
    env=st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=9))).map(tuple),
    size=st.none()
    | st.builds(TerminalSize, rows=st.integers(1, 65_535), columns=st.integers(1, 65_535)),
)
def test_a_command_arrives_as_it_was_given(
    argv: tuple[bytes, ...], env: tuple[tuple[bytes, bytes], ...], size: TerminalSize | None
) -> None:
    """Empty arguments and variables without a value included."""
    request = exec_start(Command(argv=argv, env=env, cwd=b"/", terminal=size))
    start = wire.ExecStart.parse(bytes(request))

    assert tuple(start.argv) == argv
    assert tuple((each.name, each.value) for each in start.env) == env
    assert (start.terminal is None) == (size is None)
    assert start.stdout_window == start.stderr_window == OUTPUT_WINDOW_BYTES


def test_a_command_must_fit_into_a_message() -> None:
    """The guest would end the call without a word."""
    with pytest.raises(InvalidOptionError, match="at most 1048576 bytes"):
        exec_start(Command(argv=(bytes(MAX_MESSAGE_BYTES),), env=(), cwd=b"/", terminal=None))


def _convert(message: object) -> None:
    match message:
        case wire.ExecResponse():
            exec_event(message)
        case wire.InfoResponse():
            guest_info(message)
        case wire.PingResponse():
            pong(message, message.payload)
        case wire.ShutdownResponse():
            executions_ended(message)
        case _:
            raise AssertionError(message)
