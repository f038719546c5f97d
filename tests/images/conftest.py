"""Real images in a real registry, built and pushed once for all tests that want them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import image_builder
import pytest
from image_homes import make_home
from image_layout import Layout, missing_tools
from image_registry import Registry, open_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from boxlite._layout import HomeLayout


@pytest.fixture(scope="session")
def image_tools() -> None:
    """Skip where the tools are missing, unless this machine promised to have everything."""
    missing = missing_tools()
    if missing:
        reason = f"not installed: {' '.join(missing)}; ./bootstrap.sh tests installs them"
        if os.environ.get("BOXLITE_TESTS_REQUIRE_VM"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def registry(image_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that everybody may use."""
    with open_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def private_registry(
    image_tools: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """A registry that wants a login, ``image_registry.USERNAME`` and ``PASSWORD``."""
    with open_registry(tmp_path_factory.mktemp("private"), login=True) as registry:
        yield registry


@pytest.fixture(scope="session")
def busybox(image_tools: None) -> Layout:
    """A small image with all that layers can have."""
    return image_builder.busybox()


@pytest.fixture(scope="session")
def debian(image_tools: None) -> Layout:
    """A minimal Debian."""
    return image_builder.debian()


@pytest.fixture(scope="session")
def app(image_tools: None) -> Layout:
    """An application on that Debian, with all that a configuration can have."""
    return image_builder.app()


@pytest.fixture(scope="session")
def busybox_reference(registry: Registry, busybox: Layout) -> str:
    """What :func:`busybox` is called in the registry."""
    return registry.push(busybox, "test/busybox:latest")


@pytest.fixture(scope="session")
def debian_reference(registry: Registry, debian: Layout) -> str:
    """What :func:`debian` is called in the registry."""
    return registry.push(debian, "test/debian:bookworm")


@pytest.fixture(scope="session")
def app_reference(registry: Registry, app: Layout) -> str:
    """What :func:`app` is called in the registry."""
    return registry.push(app, "test/app:latest")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of this machine is not reached through another one."""
    for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A home without anything."""
    return make_home(tmp_path / "home")
