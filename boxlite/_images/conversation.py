"""Asking about one repository: of whom, how often, and with what right.

Mirrors come before the registry, each gets one try in a round, and a round in which
the registry itself fails for the moment is followed by another after a while.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import trio

from boxlite._errors import ImageError, ImageNotFoundError, RegistryError

from .document import parse_object, take_list
from .endpoints import endpoints_of
from .exchange import ExchangeError, status_error
from .tokens import Access
from .transport import same_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .credentials import Credentials
    from .endpoints import Endpoint, RegistryOptions
    from .reference import Reference
    from .tokens import Gatekeeper
    from .transport import Transport

T = TypeVar("T")

_ERROR_BYTES_MAX: Final = 16 << 10
#: The codes of the distribution specification. What else is said may be anything.
_CODE: Final = re.compile(r"[A-Z_]{1,40}")


class Conversation:
    """Requests about the repository of one image.

    Args:
        transport: What they are sent with.
        gatekeeper: What lets us in.
        options: Mirrors and patience.
        reference: The image.
        given: The credentials for the registry; None to look for some.
        resting: The mirrors that are not asked for now, and until when (Trio's clock).
            Shared by all conversations of a client.
    """

    def __init__(
        self,
        transport: Transport,
        gatekeeper: Gatekeeper,
        options: RegistryOptions,
        reference: Reference,
        *,
        given: Credentials | None,
        resting: dict[str, float],
    ) -> None:
        self._transport = transport
        self._gatekeeper = gatekeeper
        self._options = options
        self._reference = reference
        self._given = given
        self._resting = resting

    async def fetch(
        self,
        path: str,
        consume: Callable[[httpx.Response], Awaitable[T]],
        *,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> T:
        """Ask for something, as often as it takes, and return what came of the answer.

        Args:
            path: What, below the repository, such as ``manifests/latest``.
            consume: Takes an answer of status 200, or 206 or 416 if a range was asked
                for. ExchangeError from it counts as a failure of who answered; any other
                error ends it.
            headers: Called for what to say in each request.

        Raises:
            ImageNotFoundError: There is no such manifest.
            RegistryError: It could not be had.
        """
        failures = 0
        while True:
            passed_over: list[str] = []
            for endpoint in endpoints_of(self._reference.registry, self._options):
                if self._resting.get(endpoint.origin, 0.0) > trio.current_time():
                    continue
                try:
                    return await self._ask(endpoint, path, headers(), consume)
                except ExchangeError as exc:
                    error = exc
                if endpoint.is_mirror:
                    passed_over.append(f"the mirror {endpoint.name} was passed over: {error}")
                    if not error.was_reached:
                        wake = trio.current_time() + self._options.patience.mirror_seconds
                        self._resting[endpoint.origin] = wake
            # The last one asked was the registry itself, which never rests.
            failures += 1
            if not error.is_transient or failures >= self._options.patience.tries:
                raise self._explained(error, path, failures, passed_over) from error
            await trio.sleep(self._options.patience.delay(failures, error.retry_after))

    async def _ask(
        self,
        endpoint: Endpoint,
        path: str,
        headers: Mapping[str, str],
        consume: Callable[[httpx.Response], Awaitable[T]],
    ) -> T:
        # Who only stands in for the registry must not learn what is meant for it.
        given = None if endpoint.is_mirror else self._given
        access = Access(endpoint, self._reference.repository, given)
        url = f"{endpoint.origin}/v2/{self._reference.repository}/{path}"
        authorization, is_new = self._gatekeeper.header(access), False
        while True:
            async with self._transport.ask(
                url, headers=headers, authorization=authorization
            ) as response:
                # Whoever it redirects to must not ask for the registry's credentials.
                is_own = same_origin(response.url, httpx.URL(url))
                if response.status_code == 401 and is_own and not is_new:
                    authorization = await self._gatekeeper.renew(access, response, authorization)
                    is_new = True
                    continue
                if response.status_code in (200, 206) or (
                    response.status_code == 416 and "Range" in headers
                ):
                    return await consume(response)
                if response.status_code in (401, 403) and is_own:
                    raise self._gatekeeper.refusal(access, response)
                codes = await self._codes(response)
                raise status_error(
                    response, f"it answers with status {response.status_code}{codes}"
                )

    async def _codes(self, response: httpx.Response) -> str:
        """Return what an answer says went wrong, in the words of the specification."""
        body = await self._transport.read(response, _ERROR_BYTES_MAX)
        try:
            document = parse_object(body or b"", "it", max_bytes=_ERROR_BYTES_MAX)
            errors: list[Any] = take_list(document, "errors", max_entries=100)
        except ValueError:
            return ""
        said = [error.get("code") for error in errors if isinstance(error, dict)]
        codes = [code for code in said if isinstance(code, str) and _CODE.fullmatch(code)]
        return f" ({', '.join(codes[:3])})" if codes else ""

    def _explained(
        self, error: ExchangeError, path: str, failures: int, passed_over: list[str]
    ) -> ImageError:
        image, registry = self._reference.familiar, self._reference.registry
        explained: ImageError
        if error.status == 404 and path.startswith("manifests/"):
            explained = ImageNotFoundError(
                image, f"{registry} has none of that name", fix="Check the name and the tag."
            )
        else:
            often = f" (tried {failures} times)" if failures > 1 else ""
            explained = RegistryError(
                image,
                f"the registry {registry}: {error.problem}{often}",
                url=error.url,
                status=error.status,
                fix=error.fix,
            )
        for note in passed_over:
            explained.add_note(note)
        return explained
