"""How long and how often a registry is tried, and how long to wait in between.

Sources: RFC 9110, section 10.2.3, for ``Retry-After``; "Exponential Backoff And
Jitter" (AWS Architecture Blog, 2015) for equal jitter.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import attrs

#: A registry cannot have us wait longer.
RETRY_AFTER_MAX: Final = 60.0
#: Too many requests, or the fault of a server that may be better in a moment.
TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@attrs.frozen(kw_only=True)
class Patience:
    """What is borne with.

    Args:
        tries: How often something is asked for, failures of the moment given.
        backoff: Seconds to wait after the first failure; each time it is twice that.
        connect_seconds: How long a connection may take.
        header_seconds: How long the beginning of an answer may take, redirects included.
        read_seconds: How long an answer may pause.
        rate: Bytes per second; an answer that is slower for a window is given up.
        rate_seconds: How long such a window is.
        mirror_seconds: How long a mirror that could not be reached is not asked again.
    """

    tries: int = 5
    backoff: float = 0.5
    connect_seconds: float = 15.0
    header_seconds: float = 60.0
    read_seconds: float = 30.0
    rate: float = 1024.0
    rate_seconds: float = 30.0
    mirror_seconds: float = 60.0

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Return the seconds to wait before the next try.

        Args:
            failures: How many there were, 1 or more.
            retry_after: What the registry asked for, if it did.
        """
        longest = min(self.backoff * 2.0 ** (failures - 1), RETRY_AFTER_MAX)
        # Half of it at random: of a thousand clients not all come back at once.
        jittered = longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret
        return max(jittered, min(retry_after or 0.0, RETRY_AFTER_MAX))


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that a header ``Retry-After`` asks to wait.

    Args:
        value: Its value: a number of seconds or a date.
        now: The time. Default: that of this machine's clock.

    Returns:
        The seconds, 0 or more; None if there is no such header, or it is neither.
    """
    if value is None or len(value) > 100:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
