"""A runtime for tests of the command line: it has images, and boxes that run nothing."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio
from click.testing import CliRunner

import boxlite
from boxlite._images.config import ImageConfig
from boxlite._images.platform import Platform
from boxlite.cli import app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from typing import Literal

    import pytest
    from click.testing import Result

    from boxlite._images.progress import PieceState

    Event = boxlite.PullProgress | boxlite.ConvertProgress

NAME: Final = "alpine:3.20"
DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
LAYER: Final = "sha256:" + "ab" * 32
OTHER_LAYER: Final = "sha256:" + "cd" * 32
#: What every command in a fake box exits with.
EXIT_CODE: Final = 3

CONFIG: Final = ImageConfig(
    env=("PATH=/bin",),
    entrypoint=("/entry",),
    cmd=("--serve", "it"),
    labels={"author": "\x1b[31mred\x9b"},
    platform=Platform("linux", "amd64"),
)


def make_image(
    name: str = NAME, *, age: float = 7200, config: ImageConfig = CONFIG
) -> boxlite.Image:
    """Return an image as a home has it.

    Args:
        name: What it is called.
        age: How many seconds ago it came.
        config: What it says of itself.
    """
    return boxlite.Image(
        name=name,
        digest=DIGEST,
        config=config,
        layers_bytes=3_500_000,
        root=Path("/home/roots/x.sqfs"),
        root_bytes=5 << 20,
        added_at=time.time() - age,
    )


def layer(
    state: PieceState, done: int, total: int = 5 << 20, digest: str = LAYER
) -> boxlite.PullProgress:
    """Return an event of a layer."""
    return boxlite.PullProgress(
        image=NAME, digest=digest, kind="layer", state=state, done_bytes=done, total_bytes=total
    )


def root(
    step: Literal["unpack", "pack"], done: int, total: int = 10 << 20, name: str = NAME
) -> boxlite.ConvertProgress:
    """Return an event of the making of a root."""
    return boxlite.ConvertProgress(image=name, step=step, done_bytes=done, total_bytes=total)


#: What somebody who waits is told of an image of two layers, one of which is there.
EVENTS: Final[Sequence[Event]] = (
    layer("waiting", 0),
    layer("cached", 700, 700, digest=OTHER_LAYER),
    layer("downloading", 0),
    layer("downloading", 2 << 20),
    layer("verified", 5 << 20),
    root("unpack", 1 << 20),
    root("unpack", 10 << 20),
    root("pack", 5 << 20),
)


@attrs.define
class FakeImages:
    """Images that are there or can be had, and what was asked for."""

    here: list[boxlite.Image] = attrs.field(factory=list)
    elsewhere: list[boxlite.Image] = attrs.field(factory=list)
    in_use: set[str] = attrs.field(factory=set)
    asked: list[tuple[object, ...]] = attrs.field(factory=list)

    async def get(self, name: str) -> boxlite.Image:
        """Return one that is there."""
        await trio.lowlevel.checkpoint()
        return _find(self.here, name)

    async def pull(
        self,
        name: str,
        *,
        platform: str | None = None,
        on_progress: Callable[[Event], None] | None = None,
    ) -> boxlite.Image:
        """Get one from elsewhere."""
        await trio.lowlevel.checkpoint()
        self.asked.append(("pull", name, platform, on_progress is not None))
        found = _find(self.elsewhere, name)
        if on_progress is not None:
            for event in EVENTS:
                on_progress(event)
        self.here.append(found)
        return found

    async def load(
        self,
        source: Path,
        *,
        name: str | None = None,
        platform: str | None = None,
        on_progress: Callable[[Event], None] | None = None,
    ) -> list[boxlite.Image]:
        """Return all that are elsewhere."""
        await trio.lowlevel.checkpoint()
        self.asked.append(("load", source, name, platform, on_progress is not None))
        return self.elsewhere

    async def remove(self, name: str) -> None:
        """Forget one that is not in use."""
        await trio.lowlevel.checkpoint()
        found = _find(self.here, name)
        if name in self.in_use:
            raise boxlite.StateError(f"remove {name}", required="unused", actual="used by a box")
        self.here.remove(found)

    async def prune(self, **which: bool) -> boxlite.Pruned:
        """Say that it removed something."""
        await trio.lowlevel.checkpoint()
        names = tuple(image.name for image in self.here) if which == {"all": True} else ()
        return boxlite.Pruned(images=names, bytes=3 << 20)

    async def list(self) -> Sequence[boxlite.Image]:
        """Return those that are there."""
        await trio.lowlevel.checkpoint()
        return self.here


def _find(images: Sequence[boxlite.Image], name: str) -> boxlite.Image:
    for found in images:
        if found.name == name:
            return found
    raise boxlite.ImageNotFoundError(name, "there is none")


class FakeStream:
    """A stream of a command that says nothing."""

    async def receive_some(self) -> bytes:
        """Return its end."""
        await trio.lowlevel.checkpoint()
        return b""

    async def aclose(self) -> None:
        """Close it."""
        await trio.lowlevel.checkpoint()


@attrs.define
class FakeExecution:
    """A command that ends at once."""

    stdin: FakeStream = attrs.field(factory=FakeStream)
    stdout: FakeStream = attrs.field(factory=FakeStream)
    stderr: FakeStream = attrs.field(factory=FakeStream)

    async def wait(self) -> int:
        """Return its exit code."""
        await trio.lowlevel.checkpoint()
        return EXIT_CODE


@attrs.define
class FakeRuntime:
    """A runtime and its boxes: what they were to be, and what was to run in them."""

    images: FakeImages = attrs.field(factory=FakeImages)
    registries: boxlite.RegistryOptions | None = None
    boxes: list[boxlite.BoxOptions] = attrs.field(factory=list)
    commands: list[tuple[tuple[str, ...], Mapping[str, object]]] = attrs.field(factory=list)

    @classmethod
    def instead(cls, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
        """Put one in the place of every runtime that is opened, and return it."""
        fake = cls()

        @asynccontextmanager
        async def open_runtime(
            _options: boxlite.RuntimeOptions, *, registries: boxlite.RegistryOptions | None = None
        ) -> AsyncIterator[FakeRuntime]:
            await trio.lowlevel.checkpoint()
            fake.registries = registries
            yield fake

        monkeypatch.setattr(boxlite, "open_runtime", open_runtime)
        return fake

    @asynccontextmanager
    async def open_box(
        self, options: boxlite.BoxOptions, *, on_stage: object
    ) -> AsyncIterator[FakeRuntime]:
        """Give a box."""
        assert callable(on_stage)
        await trio.lowlevel.checkpoint()
        self.boxes.append(options)
        yield self

    @asynccontextmanager
    async def exec(self, command: Sequence[str], **how: object) -> AsyncIterator[FakeExecution]:
        """Give a command."""
        await trio.lowlevel.checkpoint()
        self.commands.append((tuple(command), how))
        yield FakeExecution()


class Runner:
    """The command line, on a home of its own.

    Args:
        home: The home, which need not exist.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, *arguments: str) -> Result:
        """Run it with arguments and return click's result."""
        return CliRunner().invoke(
            app.cli, ["--home", str(self._home), *arguments], prog_name="boxlite"
        )
