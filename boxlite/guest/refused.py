"""Why a command is not started."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxlite._rpc._generated.boxlite.v1 import RefusalReason


class RefusedError(Exception):
    """A command that cannot be started.

    Args:
        reason: What the host is told in a word.
        detail: What a person is told, in a sentence.
    """

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
