"""One request over HTTP and its answer, wherever redirects lead.

httpx does the talking, in Trio. What it does by itself is turned off where it
could do harm: redirects are followed here, so that each is looked at and none
takes the credentials along; cookies are not kept; content is not decoded, for
digests are of what was sent.
"""

from __future__ import annotations

import os
from contextlib import aclosing, asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

import httpx
import trio

from boxlite._errors import HostError

from .endpoints import is_loopback, objection
from .exchange import ExchangeError, show_url, transport_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from .endpoints import RegistryOptions

REDIRECTS_MAX: Final = 5

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_URL_MAX: Final = 16 << 10
#: A proxy is somewhere else, where these are another machine.
_NO_PROXY: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class Transport:
    """Requests over HTTP, by the rules for registries. Made by :func:`open_transport`."""

    def __init__(self, http: httpx.AsyncClient, options: RegistryOptions) -> None:
        self._http = http
        self._options = options

    @asynccontextmanager
    async def ask(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        after: httpx.URL | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, follow redirects, and give the answer, its body unread.

        The connection is given back or closed when the block ends, however it does.

        Args:
            url: What is asked for.
            headers: What else is said, to every host on the way.
            authorization: The header of that name, for the host of the URL only.
            form: What to post. Default: nothing is, and this is a GET.
            after: What was asked to get the URL, if an answer gave it: it may not lead to
                where a redirect may not lead.

        Raises:
            ExchangeError: There was no answer, or a redirect that is not followed.
        """
        response = await self._answer(
            self._checked(url, after), dict(headers or {}), authorization, form
        )
        try:
            yield response
        except httpx.TransportError as exc:
            raise transport_error(exc, response.url) from exc
        finally:
            await response.aclose()

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """Yield the body of an answer as it was sent, as long as it comes fast enough.

        Raises:
            ExchangeError: It was too slow.
        """
        patience = self._options.patience
        since, received = trio.current_time(), 0
        raw = response.aiter_raw()
        try:
            async for chunk in raw:
                yield chunk
                received += len(chunk)
                elapsed = trio.current_time() - since
                if elapsed >= patience.rate_seconds:
                    if received < patience.rate * elapsed:
                        raise ExchangeError(
                            f"its answer came slower than {patience.rate:g} bytes per second",
                            url=show_url(response.url),
                            status=response.status_code,
                        )
                    since, received = trio.current_time(), 0
        finally:
            # httpx and httpcore iterate with generators, one in the other, and close none of
            # them. Left alone they would be finalized by the garbage collector, which Trio
            # warns of. With the connection closed the innermost fails, and so all end.
            await response.aclose()
            with suppress(httpx.TransportError):
                async for _ in raw:
                    pass

    async def read(self, response: httpx.Response, limit: int) -> bytes | None:
        """Return the body of an answer, or None if it has more bytes than the limit.

        Raises:
            ExchangeError: It was too slow.
        """
        body = bytearray()
        async with aclosing(self.chunks(response)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    return None
        return bytes(body)

    async def _answer(
        self,
        first: httpx.URL,
        headers: dict[str, str],
        authorization: str | None,
        form: Mapping[str, str] | None,
    ) -> httpx.Response:
        headers |= {"Accept-Encoding": "identity"}
        here = first
        try:
            with trio.fail_after(self._options.patience.header_seconds):
                for _ in range(REDIRECTS_MAX + 1):
                    if authorization is not None:
                        headers["Authorization"] = authorization
                    request = self._http.build_request(
                        "GET" if form is None else "POST", here, headers=headers, data=form
                    )
                    response = await self._http.send(request, stream=True, auth=_no_auth)
                    location = response.headers.get("Location")
                    if response.status_code not in _REDIRECTS or location is None:
                        return response
                    await response.aclose()
                    if form is not None:
                        # It would be sent again, with the secret that it holds.
                        raise ExchangeError(
                            "it redirects what was posted to it", url=show_url(here)
                        )
                    here = self._checked(location, here)
                    if not same_origin(first, here):
                        # For good: a way back may be a trick.
                        authorization = None
                        headers.pop("Authorization", None)
        except httpx.TransportError as exc:
            raise transport_error(exc, here) from exc
        except trio.TooSlowError as exc:
            raise ExchangeError(
                "it did not answer in time",
                url=show_url(here),
                is_transient=True,
                was_reached=False,
            ) from exc
        raise ExchangeError(f"it redirects more than {REDIRECTS_MAX} times", url=show_url(first))

    def _checked(self, text: str, base: httpx.URL | None) -> httpx.URL:
        """Return a URL that may be asked for.

        Args:
            text: What an answer says.
            base: What was asked to get it; None if it was no redirect.
        """
        at = show_url(base) if base else "a URL that it gave"
        try:
            if len(text) > _URL_MAX:
                raise httpx.InvalidURL("too long")
            url = httpx.URL(text) if base is None else base.join(text)
        except (httpx.InvalidURL, ValueError) as exc:
            raise ExchangeError("it leads to what is not a URL", url=at) from exc
        problem = objection(url.scheme, url.host, url.port, self._options)
        if url.userinfo:
            problem = "it has credentials in it"
        if base is not None and not problem:
            own, other = is_loopback(base.host), is_loopback(url.host)
            if other and not own:
                problem = "it is on this machine"
            elif base.scheme == "https" and url.scheme == "http" and not (own and other):
                problem = "it is plain HTTP, and what led there was not"
        if problem:
            raise ExchangeError(
                f"it leads to {show_url(url)}, where boxlite does not go: {problem}", url=at
            )
        return url


@asynccontextmanager
async def open_transport(options: RegistryOptions, user_agent: str) -> AsyncIterator[Transport]:
    """Open a transport. Its connections are closed when the block ends.

    The variables of the environment for proxies (``HTTPS_PROXY`` and the like) and for
    certificates (``SSL_CERT_FILE``, ``SSL_CERT_DIR``) are heeded.

    Args:
        options: The rules.
        user_agent: What boxlite calls itself.

    Raises:
        HostError: The certificates cannot be read, or the proxy is of an unknown kind.
    """
    try:
        context = await trio.to_thread.run_sync(_tls_context, options)
    except OSError as exc:
        named = options.ca_file or os.environ.get("SSL_CERT_FILE") or "the usual place"
        raise HostError(
            f"the certificates in {named} cannot be used: {exc.strerror or exc}",
            fix="Give a file of certificates in PEM, or none.",
        ) from exc
    patience = options.patience
    try:
        http = httpx.AsyncClient(
            verify=context,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": user_agent},
            timeout=httpx.Timeout(
                patience.read_seconds, connect=patience.connect_seconds, pool=None
            ),
            mounts=dict.fromkeys(_NO_PROXY),
        )
    except (ValueError, ImportError, httpx.InvalidURL) as exc:
        raise HostError(
            f"the proxy that the environment names cannot be used: {exc}",
            fix="Check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY: they take http:// or https://.",
        ) from exc
    async with http:
        yield Transport(http, options)


def _tls_context(options: RegistryOptions) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if options.ca_file is not None:
        context.load_verify_locations(cafile=options.ca_file)
    return context


def _no_auth(request: httpx.Request) -> httpx.Request:
    # Given to httpx so that it makes no credentials out of a URL.
    return request


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    """Tell whether two URLs are of the same server: scheme, host and port."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
