"""Who a registry is told that we are: what ``docker login`` left behind.

Sources: Docker's ``config.json`` ("auths", "credsStore", "credHelpers") and the
protocol of github.com/docker/docker-credential-helpers. A secret is in no repr
and in no error.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from boxlite._program import ask

from .document import parse_object, take_object, take_text
from .reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A helper may have to ask a person to unlock a key ring.
HELPER_SECONDS: Final = 30.0

_FILE_BYTES_MAX: Final = 1 << 20
_ANSWER_BYTES_MAX: Final = 64 << 10
_SECRET_MAX: Final = 32 << 10
_ENTRIES_MAX: Final = 10_000
#: What Docker has called Docker Hub ever since.
_HUB_KEY: Final = "https://index.docker.io/v1/"
_HELPER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: The name that a helper gives with a token instead of a password.
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a name
#: What helpers say when they know nothing of a server, which is no failure.
_UNKNOWN: Final = b"credentials not found"


@attrs.frozen(kw_only=True)
class Credentials:
    """What a registry can be told.

    Args:
        username: The name.
        password: The password, or an access token that is used as one.
        identity_token: A token to be exchanged; if there is one, it is used instead.
        source: Where it is from, for errors.
    """

    username: str
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    source: str

    @property
    def basic(self) -> str:
        """The value of the header Authorization for the scheme Basic (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def __str__(self) -> str:
        return f"{self.username!r} from {self.source}" if self.username else self.source


@attrs.frozen
class Found:
    """What a search for credentials came to.

    Args:
        credentials: The credentials, or None: then nobody need be who is asked.
        problem: Why there might be some all the same, or empty. Whoever is refused
            for lack of credentials says this.
    """

    credentials: Credentials | None
    problem: str = ""


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Return where Docker's configuration is: ``$DOCKER_CONFIG`` or ``~/.docker``."""
    directory = env.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


async def find_credentials(registry: str, path: Path | None = None) -> Found:
    """Return what Docker's configuration has for a registry.

    A helper that it names is run, for 30 seconds at most. Cancelling ends it. That one
    cannot be run, or that the file is broken, is no error: most images can be had
    without credentials.

    Args:
        registry: The host, with its port if it has one.
        path: Docker's configuration. Default: :func:`config_path`.
    """
    try:
        path = path or config_path()
    except RuntimeError:
        return Found(None)  # A user without a home has no configuration there.
    try:
        config = await trio.to_thread.run_sync(_read, path)
        if config is None:
            return Found(None)
        helper = _helper(config, registry)
        if helper is not None:
            return await _ask_helper(helper, registry)
        return Found(_from_file(config, registry, path))
    except OSError as exc:
        return Found(None, f"{path} cannot be read: {exc.strerror}")
    except ValueError as exc:
        return Found(None, f"{path} cannot be used: {exc}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_object(data, "it", max_bytes=_FILE_BYTES_MAX)


def _helper(config: dict[str, Any], registry: str) -> str | None:
    helpers = take_object(config, "credHelpers", max_entries=_ENTRIES_MAX)
    name = next(
        (take_text(helpers, key) for key in _keys(registry) if key in helpers),
        take_text(config, "credsStore"),
    )
    if name and _HELPER.fullmatch(name) is None:
        raise ValueError("it names a credential helper that cannot be the name of a program")
    return name or None


def _keys(registry: str) -> tuple[str, ...]:
    if registry == DEFAULT_REGISTRY:
        return (_HUB_KEY, "index.docker.io", registry)
    return (registry,)


def _from_file(config: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    auths = take_object(config, "auths", max_entries=_ENTRIES_MAX)
    # Old versions of Docker wrote URLs.
    by_host = {_host(key): key for key in auths}
    for key in _keys(registry):
        if (entry := auths.get(key, auths.get(by_host.get(key, key)))) is None:
            continue
        if not isinstance(entry, dict):
            raise ValueError("an entry of 'auths' is not an object")
        username, password = _decode(_take_secret(entry, "auth"))
        token = _take_secret(entry, "identitytoken")
        username = username or _take_secret(entry, "username")
        password = password or _take_secret(entry, "password")
        if token or username:
            return Credentials(
                username=username, password=password, identity_token=token, source=str(path)
            )
    return None


def _take_secret(entry: dict[str, Any], name: str) -> str:
    try:
        return take_text(entry, name, max_length=_SECRET_MAX)
    except ValueError:
        # Not the cause, which shows a part of it.
        raise ValueError(f"{name!r} in an entry of 'auths' is not a text") from None


def _host(key: str) -> str:
    return re.sub(r"\Ahttps?://", "", key).partition("/")[0]


def _decode(auth: str) -> tuple[str, str]:
    if not auth:
        return "", ""
    try:
        pair = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        # "from None": what could not be decoded is in the original error.
        raise ValueError("an entry of 'auths' is not base64 of a name and a password") from None
    username, colon, password = pair.partition(":")
    if not colon:
        raise ValueError("an entry of 'auths' is not base64 of a name and a password")
    return username, password.strip("\0")


async def _ask_helper(name: str, registry: str) -> Found:
    program = f"docker-credential-{name}"
    server = _keys(registry)[0]
    try:
        answer = await ask(
            [program, "get"],
            stdin=server.encode(),
            seconds=HELPER_SECONDS,
            max_bytes=_ANSWER_BYTES_MAX,
        )
    except OSError as exc:
        return Found(None, f"{program} cannot be run: {exc.strerror}")
    if answer.exit_code is None:
        return Found(
            None, f"{program} did not answer within {HELPER_SECONDS:g} s, or said too much"
        )
    if answer.exit_code != 0:
        if _UNKNOWN in answer.stdout + answer.stderr:
            return Found(None)
        # Its words may be anything, so they are not repeated.
        return Found(None, f"{program} failed with exit code {answer.exit_code}")
    try:
        said = parse_object(answer.stdout, "its answer", max_bytes=_ANSWER_BYTES_MAX)
        username = take_text(said, "Username")
        secret = take_text(said, "Secret", max_length=_SECRET_MAX)
    except ValueError:
        # Not the cause, which quotes what it said.
        return Found(None, f"{program} did not answer as a credential helper does")
    if username == _TOKEN_USER:
        return Found(Credentials(username="", identity_token=secret, source=program))
    if not username:
        return Found(None)
    return Found(Credentials(username=username, password=secret, source=program))
