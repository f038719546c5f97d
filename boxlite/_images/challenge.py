"""What a registry wants before it answers: the header WWW-Authenticate.

Source: RFC 9110, sections 11.3 and 11.6.1. One header, or several, may hold several
challenges; commas separate them, and their parameters too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LENGTH_MAX: Final = 8 << 10
_CHALLENGES_MAX: Final = 16

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the token of RFC 9110
_SPACE: Final = re.compile(r"[ \t,]*")
_PARAMETER: Final = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME: Final = re.compile(rf"({_TOKEN})(?:[ \t]+([A-Za-z0-9._~+/-]+=*)(?=[ \t]*(?:,|$)))?")
_ESCAPE: Final = re.compile(r"\\(.)")


@attrs.frozen
class Challenge:
    """One way to be let in.

    Args:
        scheme: How, in lower case, such as ``bearer``.
        parameters: What it says about that, by names in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges in the headers of an answer, in their order.

    What cannot be understood ends the header that it is in: what came before counts.

    Args:
        headers: The values of all headers of that name.
    """
    found: list[Challenge] = []
    for header in headers:
        found += _parse(header[:_LENGTH_MAX])
    return tuple(found[:_CHALLENGES_MAX])


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    at = 0
    while True:
        at = _end(_SPACE.match(header, at), at)
        parameter = _PARAMETER.match(header, at)
        if parameter is not None:
            if not found:
                return found
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
            # The first of two counts: there should be one.
            parameters.setdefault(name.lower(), value)
            at = parameter.end()
            continue
        scheme = _SCHEME.match(header, at)
        if scheme is None or len(found) == _CHALLENGES_MAX:
            return found
        parameters = {}
        found.append(Challenge(scheme[1].lower(), parameters))
        at = scheme.end()


def _end(match: re.Match[str] | None, at: int) -> int:
    return at if match is None else match.end()
