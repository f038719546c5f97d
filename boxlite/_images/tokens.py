"""Being let in by a registry: its challenge answered with a token or a password.

Sources: "Token Authentication Specification" and "Oauth2 Token Authentication" of
the distribution project. What is asked for is the right to pull, from one repository.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import attrs
import httpx
import trio

from .challenge import parse_challenges
from .credentials import Credentials, Found, find_credentials
from .document import parse_object, take_text
from .exchange import ExchangeError, show_url, status_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .challenge import Challenge
    from .endpoints import Endpoint, RegistryOptions
    from .transport import Transport

_ANSWER_BYTES_MAX: Final = 256 << 10
_TOKEN_MAX: Final = 64 << 10
_PARAMETER_MAX: Final = 1024
#: What RFC 6750 has for a token. Nothing else gets into a header.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_CLIENT_ID: Final = "boxlite"


@attrs.frozen
class Access:
    """What a right to pull is for.

    Args:
        endpoint: Where.
        repository: What.
        given: The credentials to use; None to look for some.
    """

    endpoint: Endpoint
    repository: str
    given: Credentials | None


class Gatekeeper:
    """The headers that let us in, kept until they are rejected.

    Args:
        transport: What tokens are asked for with.
        options: Where Docker's configuration is.
    """

    def __init__(self, transport: Transport, options: RegistryOptions) -> None:
        self._transport = transport
        self._options = options
        self._headers: dict[Access, str] = {}
        self._found: dict[Access, Found] = {}
        self._locks: WeakValueDictionary[Access, trio.Lock] = WeakValueDictionary()

    def header(self, access: Access) -> str | None:
        """Return the header Authorization that was good the last time, if there is one."""
        return self._headers.get(access)

    async def renew(self, access: Access, response: httpx.Response, rejected: str | None) -> str:
        """Return a header that should be good, after an answer with status 401.

        Of several callers one asks, and the others get what it got.

        Args:
            access: What it is for.
            response: The answer, with the challenge.
            rejected: The header that was sent, which is good no longer.

        Raises:
            ExchangeError: There is no way in, or the credentials were not accepted.
        """
        lock = self._locks.setdefault(access, trio.Lock())
        async with lock:
            known = self._headers.get(access)
            if known is not None and known != rejected:
                return known
            self._headers.pop(access, None)
            found = (
                Found(access.given)
                if access.given is not None
                else await find_credentials(access.endpoint.name, self._options.docker_config)
            )
            self._found[access] = found
            challenges = parse_challenges(response.headers.get_list("WWW-Authenticate"))
            header = await self._obtain(access, challenges, found, response)
            self._headers[access] = header
            return header

    def refusal(self, access: Access, response: httpx.Response) -> ExchangeError:
        """Return the error for an answer that says no, with who was not let in."""
        self._headers.pop(access, None)
        return _denied(self._found.get(access, Found(None)), response)

    async def _obtain(
        self,
        access: Access,
        challenges: Sequence[Challenge],
        found: Found,
        response: httpx.Response,
    ) -> str:
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                return f"Bearer {await self._token(access, challenge, found, response)}"
            if challenge.scheme == "basic":
                if found.credentials is None or found.credentials.identity_token:
                    raise _denied(found, response)
                return found.credentials.basic
        raise status_error(response, "it asks for credentials in a way that boxlite does not know")

    async def _token(
        self, access: Access, challenge: Challenge, found: Found, response: httpx.Response
    ) -> str:
        said = challenge.parameters
        if any(len(value) > _PARAMETER_MAX for value in said.values()):
            raise status_error(response, "its challenge is too long")
        parameters = {"scope": said.get("scope") or f"repository:{access.repository}:pull"}
        if service := said.get("service"):
            parameters["service"] = service
        who, realm = found.credentials, said["realm"]
        url, form, authorization = realm, None, None
        if who is not None and who.identity_token:
            form = parameters | {
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": who.identity_token,
            }
        else:
            url = _with_query(realm, parameters, response)
            authorization = who.basic if who is not None else None
        async with self._transport.ask(
            url, authorization=authorization, form=form, after=response.url
        ) as answer:
            if answer.status_code in (400, 401, 403):
                raise _denied(found, answer)
            if answer.status_code != 200:
                raise status_error(answer, f"no token was given, status {answer.status_code}")
            body = await self._transport.read(answer, _ANSWER_BYTES_MAX)
        try:
            document = parse_object(body or b"", "the answer", max_bytes=_ANSWER_BYTES_MAX)
            token = take_text(document, "token", max_length=_TOKEN_MAX) or take_text(
                document, "access_token", max_length=_TOKEN_MAX
            )
        except ValueError:
            token = ""
        if _TOKEN.fullmatch(token) is None:
            # Not the cause, which may quote it.
            raise ExchangeError(
                "it was asked for a token and answered without one", url=show_url(answer.url)
            ) from None
        return token


def _with_query(realm: str, parameters: dict[str, str], response: httpx.Response) -> str:
    try:
        return str(httpx.URL(realm).copy_merge_params(parameters))
    except (httpx.InvalidURL, ValueError) as exc:
        raise status_error(response, "its challenge names what is not a URL") from exc


def _denied(found: Found, response: httpx.Response) -> ExchangeError:
    tried = f"as {found.credentials}" if found.credentials else "without credentials"
    problem = f"it does not let us in: tried {tried}"
    if found.problem:
        problem += f" ({found.problem})"
    fix = (
        "Check the user and the password."
        if found.credentials
        else "Check the name of the image; if it is private, run docker login."
    )
    return status_error(response, problem, fix=fix)
