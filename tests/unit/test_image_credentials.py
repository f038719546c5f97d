"""What docker login left behind, and the programs that keep it."""

from __future__ import annotations

import base64
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from image_puller import pull
from registry_server import (
    bearer,
    demand,
    open_registry,
    token_service,
)

from boxlite._errors import RegistryError
from boxlite._images.blobs import BlobStore
from boxlite._images.credentials import Credentials, find_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
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


def config_file(directory: Path, document: Mapping[str, object] | bytes) -> Path:
    """Write Docker's configuration."""
    path = directory / "config.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


def encoded(text: str) -> str:
    """Return what Docker writes for a user and a password."""
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("registry_name", "key"),
    [
        ("docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("ghcr.io", "https://ghcr.io/v2/"),
        ("localhost:5000", "localhost:5000"),
    ],
)
async def test_login_is_found(tmp_path: Path, registry_name: str, key: str) -> None:
    """As Docker wrote it, now and formerly."""
    path = config_file(tmp_path, {"auths": {key: {"auth": encoded(f"ann:{SECRET}:x")}}})
    found = await find_credentials(registry_name, path)

    assert found.problem == ""
    assert found.credentials == Credentials(
        username="ann", password=f"{SECRET}:x", source=str(path)
    )
    assert SECRET not in repr(found)


async def test_login_is_used(registry: RegistryServer, store: BlobStore, tmp_path: Path) -> None:
    """Only when the registry asks for it."""
    path = config_file(tmp_path, {"auths": {registry.host: {"auth": encoded(f"ann:{SECRET}")}}})
    demand(registry, "Basic", BASIC)
    await pull(store, registry, docker_config=path)

    assert "authorization" not in registry.requests[0].headers
    assert registry.requests[-1].headers["authorization"] == BASIC


async def test_identity_token_is_exchanged(
    registry: RegistryServer, store: BlobStore, tmp_path: Path
) -> None:
    """It is posted, for a URL would end up in a log."""
    path = config_file(
        tmp_path, {"auths": {registry.host: {"auth": encoded("x:"), "identitytoken": SECRET}}}
    )
    token_service(registry, "t0k", lambda r: r.method == "POST")
    demand(registry, bearer(registry, f"{registry.url}/token"), "Bearer t0k")
    await pull(store, registry, docker_config=path)

    (asked,) = registry.asked("^/token$")
    assert asked.form == {
        "scope": ["repository:test/image:pull"],
        "service": ["registry.test"],
        "grant_type": ["refresh_token"],
        "client_id": ["boxlite"],
        "refresh_token": [SECRET],
    }
    assert "authorization" not in asked.headers


@pytest.mark.parametrize(
    "document",
    [
        b"not JSON",
        b"[]",
        {"auths": []},
        {"auths": {"ghcr.io": 7}},
        {"auths": {"ghcr.io": {"auth": SECRET}}},
        {"auths": {"ghcr.io": {"auth": [SECRET]}}},
        {"auths": {"ghcr.io": {"username": "ann", "password": 1234567890}}},
        {"auths": {"ghcr.io": {"auth": encoded("no colon")}}},
        {"credsStore": "../../bin/sh"},
        {"credHelpers": {"ghcr.io": 7}},
    ],
)
async def test_broken_configuration_is_a_problem_and_no_error(
    tmp_path: Path, document: Mapping[str, object] | bytes
) -> None:
    """Most images can be had without; whoever is refused is told of it."""
    found = await find_credentials("ghcr.io", config_file(tmp_path, document))

    assert found.credentials is None
    assert "cannot be used" in found.problem
    assert SECRET not in found.problem
    assert "1234567890" not in found.problem


async def test_no_configuration_is_no_problem(tmp_path: Path) -> None:
    """Most people never ran docker login."""
    found = await find_credentials("ghcr.io", tmp_path / "none")

    assert found.credentials is None
    assert found.problem == ""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what makes the program docker-credential-test out of a script."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def make(script: str) -> Path:
        path = programs / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return config_file(tmp_path, {"credsStore": "test"})

    return make


async def test_helper_is_asked(helper: Callable[[str], Path]) -> None:
    """It reads the server, and answers with a user and a secret."""
    answer = json.dumps({"Username": "SERVER", "Secret": SECRET})
    path = helper(f"[ $1 = get ] && read -r s; echo '{answer}' | sed \"s|SERVER|$s|\"")
    found = await find_credentials("docker.io", path)

    assert found.credentials == Credentials(
        username="https://index.docker.io/v1/",
        password=SECRET,
        source="docker-credential-test",
    )


async def test_helper_of_one_registry_comes_first(
    helper: Callable[[str], Path], tmp_path: Path
) -> None:
    """Over the one for all, and over what is in the file."""
    helper(f'echo \'{{"Username":"<token>","Secret":"{SECRET}"}}\'')
    path = config_file(
        tmp_path,
        {
            "auths": {"ghcr.io": {"auth": encoded("a:b")}},
            "credsStore": "other",
            "credHelpers": {"ghcr.io": "test"},
        },
    )
    found = await find_credentials("ghcr.io", path)

    assert found.credentials is not None
    assert found.credentials.identity_token == SECRET
    assert SECRET not in f"{found!r} {found.credentials}"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo credentials not found in native keychain; exit 1", ""),
        (f"echo {SECRET}; exit 3", "failed with exit code 3"),
        (f"echo {SECRET}", "did not answer as a credential helper does"),
        ("yes", "or said too much"),
        ("exec /no/such/program", "failed with exit code 127"),
    ],
)
async def test_helper_without_an_answer(
    helper: Callable[[str], Path], script: str, problem: str
) -> None:
    """What it said instead is not repeated: it may be the secret."""
    found = await find_credentials("ghcr.io", helper(script))

    assert found.credentials is None
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)
    assert SECRET not in found.problem


async def test_helper_that_is_missing_is_told_of_by_who_is_refused(
    registry: RegistryServer, store: BlobStore, tmp_path: Path
) -> None:
    """It is the likely reason for the refusal."""
    path = config_file(tmp_path, {"credsStore": "missing"})
    demand(registry, "Basic")

    with pytest.raises(RegistryError, match="docker-credential-missing cannot be run"):
        await pull(store, registry, docker_config=path)
