"""Between the wire and the rest of boxlite: what a guest says becomes data here, or an error.

The generated messages take anything: numbers out of range, no member of a oneof
or two. So they go no further than this module. The classes below hold values
that were checked when they were made.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs

from boxlite._errors import GuestProtocolError, InvalidOptionError
from boxlite._tree.format import NAME_BYTES as PATH_BYTES
from boxlite._wire import (
    MAX_MESSAGE_BYTES,
    OUTPUT_WINDOW_BYTES,
    PING_PAYLOAD_BYTES,
    SKIPPED_NAMES,
)

from ._generated.boxlite import v1 as wire
from .text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Sized

    from boxlite._command import Command
    from boxlite._volume import Volume

#: PID_MAX_LIMIT of a 64-bit Linux.
PID_MAX: Final = 1 << 22
SIGNAL_MAX: Final = 64
_DETAIL_CHARACTERS: Final = 4096
_NAME_CHARACTERS: Final = 65  # of the fields of struct utsname
_MEMORY_KIB_MAX: Final = 1 << 42
_COUNT_MAX: Final = (1 << 32) - 1
_UPTIME_MAX: Final = (1 << 64) - 1
_BOOT_ID: Final = re.compile(r"[0-9a-f]{32}")


def _refuse(instance: object, field: attrs.Attribute[Any], allowed: str, problem: str) -> NoReturn:
    raise GuestProtocolError(
        f"the guest's {type(instance).__name__}.{field.name} {problem}: it must be {allowed}"
    )


def _between(low: int, high: int) -> Callable[[object, attrs.Attribute[Any], int], None]:
    def validate(instance: object, field: attrs.Attribute[Any], value: int) -> None:
        if not low <= value <= high:
            _refuse(instance, field, f"{low} to {high}", f"is {value}")

    return validate


def _sized(low: int, high: int) -> Callable[[object, attrs.Attribute[Any], Sized], None]:
    def validate(instance: object, field: attrs.Attribute[Any], value: Sized) -> None:
        if not low <= len(value) <= high:
            unit = {bytes: "bytes", str: "characters"}.get(type(value), "entries")
            _refuse(instance, field, f"{low} to {high} {unit}", f"has {len(value)}")

    return validate


def _printable(instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if not value.isprintable():
        _refuse(instance, field, "printable", f"is {shown(value)!r}")


def _is_boot_id(instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if not _BOOT_ID.fullmatch(value):
        _refuse(instance, field, "32 hexadecimal digits", f"is '{shown(value)}'")


@attrs.frozen(kw_only=True)
class GuestInfo:
    """What a guest says about itself.

    Args:
        agent_version: The version of the boxlite that built the agent.
        kernel_release: The guest's ``uname -r``.
        boot_id: 32 hexadecimal digits, different for every boot of the agent.
        memory_total_kib: The guest's memory as its kernel counts it, in KiB.
    """

    agent_version: str = attrs.field(validator=[_sized(1, _NAME_CHARACTERS), _printable])
    kernel_release: str = attrs.field(validator=[_sized(1, _NAME_CHARACTERS), _printable])
    boot_id: str = attrs.field(validator=_is_boot_id)
    memory_total_kib: int = attrs.field(validator=_between(1, _MEMORY_KIB_MAX))


@attrs.frozen(kw_only=True)
class Pong:
    """The answer to a ping.

    Args:
        payload: What was sent with the ping.
        boot_id: As in :class:`GuestInfo`.
        uptime_ms: Milliseconds on the guest's monotonic clock.
        executions: Commands that have started and not ended.
    """

    payload: bytes = attrs.field(validator=_sized(0, PING_PAYLOAD_BYTES))
    boot_id: str = attrs.field(validator=_is_boot_id)
    uptime_ms: int = attrs.field(validator=_between(0, _UPTIME_MAX))
    executions: int = attrs.field(validator=_between(0, _COUNT_MAX))


@attrs.frozen
class ExecStarted:
    """The command runs."""

    pid: int = attrs.field(validator=_between(1, PID_MAX))


class Refusal(enum.Enum):
    """Why a command could not be started: what is wrong, and what a shell exits with."""

    PROGRAM_NOT_FOUND = ("the program was not found", 127)
    NOT_EXECUTABLE = ("the program cannot be executed", 126)
    CWD_NOT_FOUND = ("the directory to run in cannot be entered", 125)
    RESOURCES = ("the guest has not enough resources", 125)
    INVALID = ("the guest does not accept the request", 125)
    USER_NOT_FOUND = ("the user was not found", 125)

    @property
    def words(self) -> str:
        """What is wrong."""
        return self.value[0]

    @property
    def exit_code(self) -> int:
        """What a shell exits with."""
        return self.value[1]


@attrs.frozen
class ExecRefused:
    """The command could not be started. ``detail`` is as the guest wrote it."""

    reason: Refusal
    detail: str = attrs.field(validator=_sized(0, _DETAIL_CHARACTERS))

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return f"{self.reason.words}: {shown(self.detail)}" if self.detail else self.reason.words


def _is_errno(instance: object, field: attrs.Attribute[Any], value: int) -> None:
    if value and value not in errno.errorcode:
        _refuse(instance, field, "0 or an errno", f"is {value}")


@attrs.frozen(kw_only=True)
class CopyReport:
    """What became of files that were copied.

    Args:
        error: The errno of what the guest's kernel refused; 0 if nothing was.
        path: What could not be copied.
        problem: Why, if that is not the errno's own text; as the guest wrote it.
        skipped: How many things were left out.
        skipped_names: The first of them, and why each; as the guest wrote it.
    """

    error: int = attrs.field(default=0, validator=_is_errno)
    path: bytes = attrs.field(default=b"", validator=_sized(0, PATH_BYTES))
    problem: str = attrs.field(default="", validator=_sized(0, _DETAIL_CHARACTERS))
    skipped: int = attrs.field(default=0, validator=_between(0, _COUNT_MAX))
    skipped_names: tuple[bytes, ...] = attrs.field(default=(), validator=_sized(0, SKIPPED_NAMES))


@attrs.frozen
class ExecExited:
    """The command has ended: by itself with ``exit_code``, or by ``signal`` if that is not 0.

    If it was no command but files that were copied, ``copy`` says what became of them.
    """

    exit_code: int = attrs.field(validator=_between(0, 255))
    signal: int = attrs.field(validator=_between(0, SIGNAL_MAX))
    copy: CopyReport | None = None


ExecEvent = ExecStarted | ExecRefused | ExecExited


def guest_info(message: wire.InfoResponse) -> GuestInfo:
    """Convert the answer to Info."""
    return GuestInfo(
        agent_version=message.agent_version,
        kernel_release=message.kernel_release,
        boot_id=message.boot_id,
        memory_total_kib=message.memory_total_kib,
    )


def pong(message: wire.PingResponse, payload: bytes) -> Pong:
    """Convert the answer to a ping that had this payload."""
    if message.payload != payload:
        raise GuestProtocolError("the guest answered a ping with another payload than was sent")
    return Pong(
        payload=message.payload,
        boot_id=message.boot_id,
        uptime_ms=message.uptime_ms,
        executions=message.executions,
    )


def executions_ended(message: wire.ShutdownResponse) -> int:
    """Convert the answer to Shutdown: how many commands were ended."""
    if not 0 <= message.executions_ended <= _COUNT_MAX:
        raise GuestProtocolError(f"the guest ended {message.executions_ended} executions")
    return message.executions_ended


def exec_event(message: wire.ExecResponse) -> ExecEvent:
    """Convert one message of an execution.

    Raises:
        GuestProtocolError: It is not exactly one event, or a value in it is
            out of range.
    """
    present = [
        name for name in ("started", "refused", "exited") if getattr(message, name) is not None
    ]
    if len(present) != 1:
        raise GuestProtocolError(
            f"the guest's ExecResponse holds {' and '.join(present) or 'no event that is known'}:"
            " it must hold exactly one event"
        )
    match message:
        case wire.ExecResponse(started=wire.ExecStarted() as started):
            return ExecStarted(started.pid)
        case wire.ExecResponse(refused=wire.ExecRefused() as refused):
            return ExecRefused(_refusal(refused.reason), refused.detail)
        case wire.ExecResponse(exited=wire.ExecExited() as exited):
            report = None if exited.copy is None else _copy_report(exited.copy)
            return ExecExited(exited.exit_code, exited.signal, report)
    raise GuestProtocolError(f"the guest's ExecResponse has a {present[0]} of another type")


def _copy_report(message: wire.CopyReport) -> CopyReport:
    *names, rest = message.skipped_names.split(b"\0")
    if rest:
        raise GuestProtocolError(f"the guest's CopyReport.skipped_names has no end: {rest[:50]!r}")
    return CopyReport(
        error=message.error,
        path=message.path,
        problem=message.problem,
        skipped=message.skipped,
        skipped_names=tuple(names),
    )


def _refusal(reason: wire.RefusalReason) -> Refusal:
    try:
        return Refusal[reason.name or ""]
    except KeyError:
        raise GuestProtocolError(
            f"the guest's ExecRefused.reason is {int(reason)}: it must be 1 to {len(Refusal)}"
        ) from None


def exec_start(command: Command) -> wire.ExecStart:
    """Return the question that starts an execution.

    Raises:
        InvalidOptionError: The command is too large for one message.
    """
    terminal = command.terminal
    size = (
        None
        if terminal is None
        else wire.TerminalSize(rows=terminal.rows, columns=terminal.columns)
    )
    request = wire.ExecStart(
        argv=list(command.argv),
        env=[wire.EnvironmentVariable(name=name, value=value) for name, value in command.env],
        cwd=command.cwd,
        terminal=size,
        merge_stderr=command.merge_stderr,
        user=command.user,
        stdout_window=OUTPUT_WINDOW_BYTES,
        stderr_window=OUTPUT_WINDOW_BYTES,
    )
    length = len(bytes(request))
    if length > MAX_MESSAGE_BYTES:
        allowed = f"at most {MAX_MESSAGE_BYTES} bytes, arguments and environment together"
        raise InvalidOptionError("command", f"{length} bytes", allowed)
    return request


def set_up(
    *,
    working_directory: str | None,
    volumes: Sequence[tuple[str, Volume, str]],
    limits: Sequence[tuple[int, int, int]],
) -> wire.SetUpRequest:
    """Return the question that gives commands what they find.

    Args:
        working_directory: Of the image; None if the box has none.
        volumes: The tag of each, what it is, and the name of the file if it is a single one.
        limits: Number, soft and hard value of each.
    """
    return wire.SetUpRequest(
        image=(
            None
            if working_directory is None
            else wire.ImageRoot(working_directory=os.fsencode(working_directory))
        ),
        volumes=[
            wire.VolumeMount(
                tag=tag,
                path=os.fsencode(volume.target),
                read_only=volume.read_only,
                file=os.fsencode(file),
            )
            for tag, volume, file in volumes
        ],
        limits=[
            wire.ResourceLimit(resource=number, soft=soft, hard=hard)
            for number, soft, hard in limits
        ],
    )


def copy_out(path: bytes) -> wire.ExecStart:
    """Return the question that has what is at a path packed."""
    return wire.ExecStart(
        copy=wire.Copy(path=path, out=True),
        stdout_window=OUTPUT_WINDOW_BYTES,
    )


def copy_in(path: bytes, *, replace: bool, keep_owners: bool) -> wire.ExecStart:
    """Return the question that has what is sent unpacked at a path."""
    return wire.ExecStart(
        copy=wire.Copy(path=path, replace=replace, keep_owners=keep_owners),
    )
