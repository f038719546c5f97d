"""The exit file: how the VM ended, as one JSON object. The package's docstring has its fields."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from ._boxdir import publish

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ._spawn import CannotStartError

_PANIC_EXIT_CODE: Final = 101
_TEXT_CHARACTERS: Final = 2000

# How QEMU 7.2 words that it or the host cannot do something, in lower case.
_UNSUPPORTED: Final = (
    "not supported",
    "unsupported",
    "does not support",
    "invalid option",
    "invalid accelerator",
    "not a valid device model",
    "could not access kvm",
    "failed to initialize kvm",
)

# What QEMU says last when it cannot load a machine's state.
_LOADING_FAILED: Final = "load of migration failed"

Record = dict[str, Any]


def ended(status: int, *, sent: AbstractSet[int], requested: bool, said: str) -> Record:
    """Describe the end of a QEMU that had run.

    Args:
        status: Its exit code, or -n when signal n ended it.
        sent: The signals that the shim sent it.
        requested: Whether the shim had been asked to stop it.
        said: The last line that it wrote to standard error.
    """
    if status == 0 or -status in sent:
        return {"type": "exit", "exit_code": 0, "requested": requested}
    if status < 0:
        return {"type": "signal", "exit_code": 128 - status, "signal": _signal_name(-status)}
    if _LOADING_FAILED in said.lower():
        return _error(status, said, "template")
    unsupported = any(words in said.lower() for words in _UNSUPPORTED)
    return _error(status, said, "unsupported" if unsupported else "engine")


def template_failed(reason: str) -> Record:
    """Describe a QEMU that was killed because it refused to save or load a machine's state."""
    return _error(1, reason, "template")


def not_started(reason: CannotStartError) -> Record:
    """Describe a QEMU that could not be executed."""
    return _error(reason.exit_code, str(reason), "unsupported")


def panicked(exc: BaseException) -> Record:
    """Describe a failure of the shim itself."""
    record: Record = {
        "type": "panic",
        "exit_code": _PANIC_EXIT_CODE,
        "message": f"{type(exc).__name__}: {exc}"[:_TEXT_CHARACTERS],
    }
    traceback = exc.__traceback__
    while traceback is not None:
        file = os.path.basename(traceback.tb_frame.f_code.co_filename)
        record["location"] = f"{file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return record


def write_exit_file(box: int, record: Record, *, ready: bool) -> None:
    """Write the exit file; it is on the disk when it can be seen.

    Args:
        box: The box's directory.
        record: What one of the functions above returned.
        ready: Whether the guest had said that it was ready.

    Raises:
        OSError: It could not be written.
    """
    text = json.dumps({**record, "ready": ready, "time": round(time.time(), 3)})
    publish(box, "exit", text.encode() + b"\n", durable=True)


def _error(exit_code: int, message: str, kind: str) -> Record:
    return {
        "type": "error",
        "exit_code": exit_code,
        "message": message[:_TEXT_CHARACTERS],
        "error_kind": kind,
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
