"""Resource limits of commands, by the names that container tools give them."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final

from ._errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A limit's number, soft and hard value, as the guest is told them.
Rlimit = tuple[int, int, int]

NAMES: Final = {
    name: getattr(resource, f"RLIMIT_{name.upper()}")
    for name in ("core", "fsize", "memlock", "nofile", "nproc", "stack")
}
#: What setrlimit(2) takes for "no limit".
NO_LIMIT: Final = (1 << 64) - 1


def checked_rlimits(given: Mapping[str, Any] | tuple[tuple[str, Any], ...]) -> Any:  # noqa: ANN401
    """Return limits as pairs of a name and (soft, hard).

    Raises:
        InvalidOptionError: A name or a value is not allowed.
    """
    items = given if isinstance(given, tuple) else getattr(given, "items", tuple)()
    if not items and given:
        raise InvalidOptionError("rlimits", given, "a mapping of names to numbers")
    return tuple((name, _pair(name, value)) for name, value in items)


def _pair(name: object, value: object) -> tuple[int, int]:
    if name not in NAMES:
        raise InvalidOptionError("rlimits name", name, f"one of {', '.join(NAMES)}")
    match value:
        case (int(soft), int(hard)) | [int(soft), int(hard)]:
            pass
        case int(soft):
            hard = soft
        case _:
            soft = hard = -2
    if not (-1 <= soft < NO_LIMIT and -1 <= hard < NO_LIMIT):
        allowed = "a whole number or a pair of them (soft, hard), -1 for no limit"
        raise InvalidOptionError(f"rlimits[{name!r}]", value, allowed)
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidOptionError(f"rlimits[{name!r}]", value, "a soft limit up to the hard one")
    return soft, hard


def rlimit_numbers(limits: tuple[tuple[str, tuple[int, int]], ...]) -> list[Rlimit]:
    """Return limits as the kernel knows them."""
    return [(NAMES[name], _unsigned(soft), _unsigned(hard)) for name, (soft, hard) in limits]


def _unsigned(number: int) -> int:
    return NO_LIMIT if number == -1 else number
