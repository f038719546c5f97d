"""A request to a registry that failed: what happened, and whether it may go better.

Nothing of this reaches a user as it is: it becomes an error of boxlite where it is
known which image was asked for.
"""

from __future__ import annotations

import ssl

import httpx

from .retry import TRANSIENT_STATUS, parse_retry_after


class ExchangeError(Exception):
    """A request did not get what it was for. Becomes a boxlite error where the image is known.

    Args:
        problem: What happened, without a full stop.
        url: What was asked, without what may be secret in it.
        status: The HTTP status, if there was an answer.
        is_transient: Whether it may go better in a moment.
        retry_after: The seconds that the registry asked to wait.
        was_reached: Whether there was an answer at all.
        fix: What to do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        url: str,
        status: int | None = None,
        is_transient: bool = False,
        retry_after: float | None = None,
        was_reached: bool = True,
        fix: str = "",
    ) -> None:
        super().__init__(f"{problem} ({url})")
        self.problem = problem
        self.url = url
        self.status = status
        self.is_transient = is_transient
        self.retry_after = retry_after
        self.was_reached = was_reached
        self.fix = fix


def status_error(response: httpx.Response, problem: str, *, fix: str = "") -> ExchangeError:
    """Return the error for an answer whose status says that something failed."""
    return ExchangeError(
        problem,
        url=show_url(response.url),
        status=response.status_code,
        is_transient=response.status_code in TRANSIENT_STATUS,
        retry_after=parse_retry_after(response.headers.get("Retry-After")),
        fix=fix,
    )


def show_url(url: httpx.URL) -> str:
    """Return a URL without what may be secret: its query, which signs it, and names."""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    path = url.path if len(url.path) <= 300 else f"{url.path[:300]}..."
    return _printable(f"{url.scheme}://{host}{port}{path}")


def transport_error(exc: httpx.TransportError, url: httpx.URL) -> ExchangeError:
    """Return the error for a connection that could not be made, or that broke."""
    cause: BaseException | None = exc
    reason = str(exc) or type(exc).__name__
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ExchangeError(
                f"its certificate is not trusted: {cause.verify_message}",
                url=show_url(url),
                was_reached=False,
                fix="If that is right, name its authority's certificate: RegistryOptions.ca_file"
                " or SSL_CERT_FILE.",
            )
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]  # Trio tried several addresses.
        else:
            cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx.TimeoutException):
        what = "it did not answer in time"
    else:
        # What was sent may be in it.
        what = f"the connection failed: {_printable(reason[:200])}"
    return ExchangeError(what, url=show_url(url), is_transient=True, was_reached=False)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
