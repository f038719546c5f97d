"""The interpreter's answer: checked, because a guest says it."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from boxlite._code_result import CodeError, CodeResult, RichResult
from boxlite._errors import GuestProtocolError

#: The most that is said of a value, a message or a traceback.
_TEXT_CHARACTERS: Final = 1 << 20
_RESULTS: Final = 64


def code_result(data: bytes) -> CodeResult:
    """Return what an answer of the interpreter says.

    Raises:
        GuestProtocolError: It does not say what an interpreter says.
    """
    try:
        fields = json.loads(data)
        error = fields["error"]
        return CodeResult(
            value=None if fields["value"] is None else _text(fields["value"]),
            stdout=_decoded(fields["stdout"]).decode(errors="replace"),
            stderr=_decoded(fields["stderr"]).decode(errors="replace"),
            error=None if error is None else _error(error),
            results=tuple(_rich(result) for result in _list(fields["results"])),
            stdout_truncated=fields["stdout_truncated"] is True,
            stderr_truncated=fields["stderr_truncated"] is True,
        )
    # RecursionError: a few kilobytes of "[" are enough.
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise GuestProtocolError(
            f"the interpreter's answer makes no sense: {type(exc).__name__}: {exc!s:.100}"
        ) from exc


def _error(fields: Any) -> CodeError:  # noqa: ANN401 - anything may come
    return CodeError(
        type=_text(fields["type"]),
        message=_text(fields["message"]),
        traceback=_text(fields["traceback"]),
    )


def _rich(fields: Any) -> RichResult:  # noqa: ANN401 - anything may come
    return RichResult(mime=_text(fields["mime"])[:100], data=_decoded(fields["data"]))


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - anything may come
    if not isinstance(value, list) or len(value) > _RESULTS:
        raise ValueError(f"not a list of at most {_RESULTS} results")
    return value


def _text(value: Any) -> str:  # noqa: ANN401 - anything may come
    return _string(value)[:_TEXT_CHARACTERS]


def _decoded(value: Any) -> bytes:  # noqa: ANN401 - anything may come
    return base64.b64decode(_string(value), validate=True)


def _string(value: Any) -> str:  # noqa: ANN401 - anything may come
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value
