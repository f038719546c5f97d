"""Being let in by a registry, and what its mirrors never learn of it."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
from image_puller import content, pull
from registry_server import (
    Reply,
    Request,
    bearer,
    demand,
    digest_of,
    open_registry,
    token_service,
)

from boxlite._errors import RegistryError
from boxlite._images.blobs import BlobStore
from boxlite._images.challenge import Challenge, parse_challenges

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from registry_server import RegistryServer

SECRET = "correct-horse-battery"
BASIC = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    """A registry on loopback, with an image of one layer."""
    with open_registry() as server:
        server.put_image(b"layer")
        yield server


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A store with nothing in it."""
    return BlobStore(tmp_path / "images")


def test_challenges_are_understood() -> None:
    """Several in one header, and what a quoted text may hold."""
    found = parse_challenges(
        [
            'Bearer realm="https://a/t?x=1,2",service="s\\"q",SCOPE="repository:a:pull,push"',
            "Negotiate abc==, Basic realm=plain, nonsense !",
        ]
    )

    assert found == (
        Challenge(
            "bearer",
            {"realm": "https://a/t?x=1,2", "service": 's"q', "scope": "repository:a:pull,push"},
        ),
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": "plain"}),
        Challenge("nonsense", {}),
        Challenge("!", {}),
    )


async def test_anybody_gets_a_token(registry: RegistryServer, store: BlobStore) -> None:
    """Docker Hub wants one even for what is public. One is enough for all pieces."""
    token_service(registry, "t0k")
    demand(registry, bearer(registry, f"{registry.url}/token"), "Bearer t0k")
    await pull(store, registry)

    (asked,) = registry.asked("^/token$")
    assert asked.query == {"scope": ["repository:test/image:pull"], "service": ["registry.test"]}
    assert "authorization" not in asked.headers
    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_scope_of_the_challenge_is_asked_for(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Amazon's public registry has a scope of its own."""
    token_service(registry, "t0k")
    demand(registry, bearer(registry, f"{registry.url}/token") + ',scope="aws"', "Bearer t0k")
    await pull(store, registry)

    assert registry.asked("^/token$")[0].query["scope"] == ["aws"]


async def test_token_is_had_for_a_password(registry: RegistryServer, store: BlobStore) -> None:
    """The password goes to the service that gives tokens, and the token to the registry."""
    token_service(registry, "t0k", lambda request: request.headers.get("authorization") == BASIC)
    demand(registry, bearer(registry, f"{registry.url}/token"), "Bearer t0k")
    await pull(store, registry, credentials=("ann", SECRET))

    assert {r.headers.get("authorization") for r in registry.asked("^/v2/")} == {
        None,
        "Bearer t0k",
    }


async def test_token_that_runs_out_is_renewed(registry: RegistryServer, store: BlobStore) -> None:
    """A layer may take longer than a token lasts."""
    tokens = iter(["one", "two", "three"])
    registry.guard(
        r"^/token$", lambda _: Reply(200, json.dumps({"access_token": next(tokens)}).encode())
    )
    challenge = bearer(registry, f"{registry.url}/token")

    def check(request: Request) -> Reply | None:
        good = "Bearer two" if "/blobs/" in request.path else "Bearer one"
        if request.headers.get("authorization") == good:
            return None
        return Reply(401, headers={"WWW-Authenticate": challenge})

    registry.guard(r"^/v2/", check)
    await pull(store, registry)

    assert len(registry.asked("^/token$")) == 2


async def test_password_is_accepted(registry: RegistryServer, store: BlobStore) -> None:
    """The scheme Basic, which small registries have."""
    demand(registry, 'Basic realm="here"', BASIC)
    await pull(store, registry, credentials=("ann", SECRET))

    assert content(store)[digest_of(b"layer")] == b"layer"


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_wrong_password(registry: RegistryServer, store: BlobStore, scheme: str) -> None:
    """The error says who was tried, and not with what."""
    token_service(registry, "t0k", lambda _: False)
    realm = f"{registry.url}/token"
    demand(registry, 'Basic realm="x"' if scheme == "basic" else bearer(registry, realm))

    with pytest.raises(RegistryError, match="tried as 'ann' from the caller") as caught:
        await pull(store, registry, credentials=("ann", SECRET))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert BASIC[6:] not in str(error)
        error = error.__cause__ or error.__context__
    assert caught.value.status == 401
    assert len(registry.requests) == 2


async def test_no_credentials(registry: RegistryServer, store: BlobStore) -> None:
    """Docker Hub says this of what does not exist, too."""
    demand(registry, 'Basic realm="here"')

    with pytest.raises(RegistryError, match=r"tried without credentials.*docker login"):
        await pull(store, registry)


async def test_token_that_is_not_accepted(registry: RegistryServer, store: BlobStore) -> None:
    """One try with it, and no more."""
    token_service(registry, "useless")
    demand(registry, bearer(registry, f"{registry.url}/token"))

    with pytest.raises(RegistryError, match="tried without credentials"):
        await pull(store, registry)
    assert len(registry.requests) == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_forbidden(registry: RegistryServer, store: BlobStore, status: int) -> None:
    """With no challenge there is nothing to answer."""
    registry.guard(r"^/v2/", lambda _: Reply(status))

    with pytest.raises(RegistryError) as caught:
        await pull(store, registry)
    assert caught.value.status == status
    assert len(registry.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b'{"token": 7}',
        b'{"token": "a\\r\\nX: b"}',
        b'{"token": ""}',
        b"[" * 9000,
    ],
)
async def test_answer_without_a_token(
    registry: RegistryServer, store: BlobStore, answer: bytes
) -> None:
    """What gets into a header is what a token can be."""
    registry.guard(r"^/token$", lambda _: Reply(200, answer))
    demand(registry, bearer(registry, f"{registry.url}/token"))

    with pytest.raises(RegistryError, match="answered without one"):
        await pull(store, registry)


@pytest.mark.parametrize(
    "realm",
    ["ftp://host/token", "http://registry.test/token", "http://[::", "https://u:p@host/token"],
)
async def test_realm_is_looked_at(registry: RegistryServer, store: BlobStore, realm: str) -> None:
    """A password must not be sent just anywhere."""
    demand(registry, bearer(registry, realm))

    with pytest.raises(RegistryError, match="where boxlite does not go|what is not a URL"):
        await pull(store, registry, credentials=("ann", SECRET))
    assert len(registry.requests) == 1


async def test_mirror_does_not_get_the_credentials(
    registry: RegistryServer, store: BlobStore
) -> None:
    """They are for the registry, whoever stands in for it."""
    demand(registry, 'Basic realm="here"', BASIC)
    with open_registry() as mirror:
        demand(mirror, 'Basic realm="here"')
        await pull(
            store,
            registry,
            credentials=("ann", SECRET),
            mirrors={registry.host: (mirror.host,)},
        )
        assert mirror.requests
        assert all("authorization" not in request.headers for request in mirror.requests)
