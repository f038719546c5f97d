"""Where redirects lead, what they take along, and what is said in the clear."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.socket
import trio.testing
from image_puller import content, pull
from registry_server import (
    Certificate,
    Reply,
    Request,
    bearer,
    demand,
    digest_of,
    make_certificate,
    open_registry,
    token_service,
)

from boxlite._errors import HostError, ImageNotFoundError, RegistryError
from boxlite._images.blobs import BlobStore
from boxlite._images.reference import Reference
from boxlite._images.registry import open_client

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


async def test_redirect_does_not_take_the_credentials_along(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Blobs are often elsewhere, and that elsewhere must not learn who asks."""
    demand(registry, 'Basic realm="here"', BASIC)
    with open_registry() as elsewhere:
        elsewhere.blobs = dict(registry.blobs)

        def away(request: Request) -> Reply | None:
            if "authorization" not in request.headers:
                return None
            return Reply(307, headers={"Location": elsewhere.url + request.path})

        registry.guard("/blobs/", away)
        await pull(store, registry, credentials=("ann", SECRET))

        assert len(elsewhere.requests) == 2
        assert all("authorization" not in request.headers for request in elsewhere.requests)


async def test_redirect_back_does_not_get_the_credentials(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Who is in between could choose what they are used for."""
    with open_registry() as elsewhere:
        elsewhere.guard("", lambda _: Reply(302, headers={"Location": f"{registry.url}/secret"}))
        demand(registry, 'Basic realm="here"', BASIC)
        registry.on(
            "/manifests/", Reply(200), Reply(302, headers={"Location": f"{elsewhere.url}/x"})
        )
        registry.guard("/secret", lambda _: Reply(404))
        with pytest.raises(ImageNotFoundError):
            await pull(store, registry, credentials=("ann", SECRET))
    (secret,) = registry.asked("/secret")
    assert "authorization" not in secret.headers


async def test_challenge_of_elsewhere_is_not_answered(
    registry: RegistryServer, store: BlobStore
) -> None:
    """A redirect may lead to somebody who asks for the registry's password."""
    with open_registry() as elsewhere:
        demand(elsewhere, bearer(elsewhere, f"{elsewhere.url}/token"))
        token_service(elsewhere, "t0k")
        registry.guard("/v2/", lambda r: Reply(307, headers={"Location": elsewhere.url + r.path}))
        with pytest.raises(RegistryError, match="status 401"):
            await pull(store, registry, credentials=("ann", SECRET))
        assert [r.headers.get("authorization") for r in elsewhere.requests] == [None]


async def test_redirect_within_a_registry_keeps_the_credentials(
    registry: RegistryServer, store: BlobStore
) -> None:
    """It is the same server, which knows them already."""
    demand(registry, 'Basic realm="here"', BASIC)
    blob = registry.put_blob(b"layer")
    registry.guard(
        f"image/blobs/{blob}",
        lambda _: Reply(301, headers={"Location": f"../../other/blobs/{blob}"}),
    )
    await pull(store, registry, credentials=("ann", SECRET))

    (other,) = registry.asked("/other/")
    assert other.headers["authorization"] == BASIC


async def test_redirects_have_an_end(registry: RegistryServer, store: BlobStore) -> None:
    """Five of them, and it is not tried again."""
    registry.guard("/v2/", lambda request: Reply(302, headers={"Location": request.path}))

    with pytest.raises(RegistryError, match="redirects more than 5 times"):
        await pull(store, registry)
    assert len(registry.requests) == 6


@pytest.mark.parametrize(
    "location",
    [
        "http://registry.test/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://user:pass@127.0.0.1/x",
        "http://[::",
        "//",
    ],
)
async def test_redirect_is_looked_at(
    registry: RegistryServer, store: BlobStore, location: str
) -> None:
    """Into the clear, into another protocol, or with somebody's credentials: no."""
    registry.guard("/v2/", lambda _: Reply(302, headers={"Location": location}))

    with pytest.raises(RegistryError):
        await pull(store, registry)


class _Names(trio.abc.HostnameResolver):
    """Every name is this machine's."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - its name there
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Return the address of this machine."""
        return await trio.socket.getaddrinfo("127.0.0.1", port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:  # noqa: ANN401
        """Return nothing: nobody asks."""
        raise NotImplementedError


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A certificate of registry.test and elsewhere.test."""
    try:
        return make_certificate(tmp_path, "registry.test", "elsewhere.test")
    except FileNotFoundError:
        pytest.skip("there is no openssl")


async def test_https_is_spoken_to_everybody_else(
    store: BlobStore, certificate: Certificate
) -> None:
    """With a certificate that is checked."""
    trio.socket.set_custom_hostname_resolver(_Names())
    with open_registry(name="registry.test", certificate=certificate) as registry:
        registry.put_image(b"layer")
        with pytest.raises(RegistryError, match=r"certificate is not trusted.*ca_file"):
            await pull(store, registry)
        assert registry.requests == []
        await pull(store, registry, ca_file=certificate.path)

    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_https_does_not_lead_into_the_clear(
    store: BlobStore, certificate: Certificate
) -> None:
    """Not even to a host that is insecure by option, and not to this machine."""
    trio.socket.set_custom_hostname_resolver(_Names())
    with (
        open_registry(name="registry.test", certificate=certificate) as registry,
        open_registry(name="elsewhere.test") as clear,
    ):
        for target in (clear.url, clear.url.replace("elsewhere.test", "127.0.0.1")):
            registry.on("/v2/", Reply(307, headers={"Location": f"{target}/x"}))
            with pytest.raises(RegistryError, match="where boxlite does not go"):
                await pull(
                    store, registry, ca_file=certificate.path, insecure=frozenset({clear.host})
                )
        assert clear.requests == []


async def test_insecure_host_is_spoken_to_in_the_clear(store: BlobStore) -> None:
    """When that was asked for, and only then."""
    trio.socket.set_custom_hostname_resolver(_Names())
    with open_registry(name="registry.test") as registry:
        registry.put_image(b"layer")
        with pytest.raises(RegistryError, match="the connection failed"):
            await pull(store, registry)
        await pull(store, registry, insecure={registry.host.upper()})

    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_certificates_that_are_none(registry: RegistryServer, store: BlobStore) -> None:
    """Said before anything is asked."""
    with pytest.raises(HostError, match="cannot be used"):
        await pull(store, registry, ca_file=store.root / "missing.pem")


async def test_this_machine_is_not_reached_through_a_proxy(
    registry: RegistryServer, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the proxy, 127.0.0.1 is itself."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with open_client(store) as client:
        await client.pull(Reference.parse(f"{registry.host}/test/image"))

    assert content(store)[digest_of(b"layer")] == b"layer"


@pytest.mark.parametrize("proxy", ["socks5://host:1", "gopher://host"])
async def test_proxy_of_an_unknown_kind(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Said before anything is asked, with the names of the variables."""
    monkeypatch.setenv("ALL_PROXY", proxy)

    with pytest.raises(HostError, match="HTTPS_PROXY"):
        async with open_client(store):
            pass
