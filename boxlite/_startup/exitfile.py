"""The exit file: the shim's last word about how its VM ended.

One JSON object with a ``type``, written once by rename (see ``boxlite.shim``).
It is absent when the shim itself was killed. A file that cannot be understood
reads as absent, and what an older or newer shim wrote is understood as far as
it goes: a crash report must never fail because of what it reports on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal, cast

import attrs

from boxlite._evidence import printable, read_excerpt

if TYPE_CHECKING:
    from pathlib import Path

    from boxlite._secrets import Secrets

_FILE_BYTES: Final = 64 << 10
_TEXT_CHARACTERS: Final = 2000

ExitType = Literal["signal", "error", "panic", "exit"]


@attrs.frozen(kw_only=True)
class ExitRecord:
    """What an exit file says.

    Args:
        type: ``"signal"``: QEMU was ended by one; ``"error"``: QEMU failed;
            ``"panic"``: the shim failed; ``"exit"``: the VM ended without failure.
        exit_code: The shim's own exit code: 128 + n for signal n.
        ready: The guest had said that it was ready.
        requested: The shim had been asked to stop the VM.
        signal: The name of the signal.
        message: What QEMU or the exception said.
        unsupported: The host or QEMU cannot do what was asked.
        template: The state of a template could not be saved or loaded.
        location: File and line of the exception.
    """

    type: ExitType
    exit_code: int
    ready: bool = False
    requested: bool = False
    signal: str = ""
    message: str = ""
    unsupported: bool = False
    template: bool = False
    location: str = ""


def read_exit_file(path: Path, secrets: Secrets) -> tuple[ExitRecord | None, str]:
    """Return what an exit file says, without the secrets, and if it says nothing why that is.

    Nothing is said by a file that is missing, cannot be read or makes no sense.
    """
    excerpt = read_excerpt(path, head=_FILE_BYTES, tail=0)
    if excerpt.size is None:
        return None, excerpt.problem or "missing"
    if excerpt.whole is None:
        return None, f"{excerpt.size} bytes long, which no shim writes"
    record = parse_exit_record(excerpt.whole)
    if record is None:
        return None, "not what a shim writes"
    # Its words, and not the file: a secret may be a word that the format needs.
    return attrs.evolve(record, message=secrets.hide_text(record.message)), ""


def parse_exit_record(data: bytes) -> ExitRecord | None:
    """Return what the bytes of an exit file say, or None. Accepts any bytes."""
    try:
        fields = json.loads(data)
    # RecursionError: a few kilobytes of "[" are enough.
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    kind = fields.get("type")
    code = fields.get("exit_code")
    if kind not in {"signal", "error", "panic", "exit"}:
        return None
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 255:
        return None

    def text(name: str) -> str:
        value = fields.get(name)
        if not isinstance(value, str):
            return ""
        return printable(value.encode(errors="backslashreplace"))[:_TEXT_CHARACTERS]

    return ExitRecord(
        type=cast("ExitType", kind),
        exit_code=code,
        ready=fields.get("ready") is True,
        requested=fields.get("requested") is True,
        signal=text("signal"),
        message=text("message"),
        unsupported=fields.get("error_kind") == "unsupported",
        template=fields.get("error_kind") == "template",
        location=text("location"),
    )
