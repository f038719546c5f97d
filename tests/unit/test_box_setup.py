"""What the guest of a new box is told of it, over an engine of tasks."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from census import open_files
from fake_engine import FakeEngine, fake_engine
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import boxlite
from boxlite._home import prepare_home
from boxlite._images.config import ImageConfig
from boxlite._layout import HomeLayout
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._startup import devices, stages
from boxlite._startup.templates import find_template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from fake_guest import FakeGuest

LIMITS: dict[str, int | tuple[int, int]] = {"nofile": (512, 1024), "core": 0}


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeEngine]:
    """An engine whose guests are given up quickly when they have failed."""
    monkeypatch.setattr(stages, "_DEATH_SECONDS", 0.01)
    async with fake_engine(monkeypatch) as engine:
        await stages.load_session_code(None)  # type: ignore[arg-type]
        yield engine


def keep_guests(
    engine: FakeEngine, script: Callable[[], Awaitable[None]] | None = None
) -> list[FakeGuest]:
    """Have what guests are told kept, and what they do about it be something else."""
    guests: list[FakeGuest] = []

    def shape(guest: FakeGuest) -> None:
        guests.append(guest)
        if script is not None:
            guest.set_up_script = script

    engine.shape = shape
    return guests


async def test_a_guest_is_told_of_limits_and_volumes(engine: FakeEngine, tmp_path: Path) -> None:
    """A single file under a name of its own; its link goes with the box."""
    (tmp_path / "file").write_text("text")
    guests = keep_guests(engine)
    volumes = [
        boxlite.Volume(tmp_path, "/data", read_only=False),
        boxlite.Volume(tmp_path / "file", "/etc/app.conf"),
    ]
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        async with runtime.open_box(rlimits=LIMITS, volumes=volumes) as box:
            shared = runtime.home.box(box.id).volumes / "1" / "app.conf"
            assert shared.samefile(tmp_path / "file")
        assert list(runtime.home.boxes.iterdir()) == []

    assert guests[0].set_ups == [
        wire.SetUpRequest(
            volumes=[
                wire.VolumeMount(tag="volume0", path=b"/data"),
                wire.VolumeMount(
                    tag="volume1", path=b"/etc/app.conf", read_only=True, file=b"app.conf"
                ),
            ],
            limits=[
                wire.ResourceLimit(resource=resource.RLIMIT_NOFILE, soft=512, hard=1024),
                wire.ResourceLimit(resource=resource.RLIMIT_CORE),
            ],
        )
    ]
    assert (tmp_path / "file").read_text() == "text"


async def test_a_guest_that_has_nothing_to_do_is_told_nothing(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """The first call takes as long as everything else of a start."""
    guests = keep_guests(engine)
    async with (
        boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime,
        runtime.open_box() as box,
    ):
        assert (await box.run(["true"])).exit_code == 0

    assert guests[0].set_ups == []


async def _refuse() -> None:
    raise GRPCError(Status.FAILED_PRECONDITION, "no \x1b[31mlimits today")


@pytest.mark.parametrize("dies", [False, True])
async def test_a_guest_that_refuses_is_one_failed_start(
    engine: FakeEngine, tmp_path: Path, dies: bool
) -> None:
    """With its words, or the story of its death; what is left explains it, and is no more."""

    async def die() -> None:
        (shim,) = engine.shims.values()
        shim.end({"type": "signal", "exit_code": 137, "signal": "SIGKILL"})

    keep_guests(engine, die if dies else _refuse)
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        before = open_files()
        words = "ended by SIGKILL" if dies else r"SetUp: no \\x1b\[31mlimits today"
        with pytest.raises(boxlite.BoxStartError, match=words) as caught:
            async with runtime.open_box(
                rlimits=LIMITS, detach=True, volumes=[boxlite.Volume(tmp_path, "/data")]
            ):
                pytest.fail("the box started")

        assert (caught.value.report.kind is boxlite.CrashKind.GUEST_FAULT) is not dies
        assert engine.shims == {}
        assert open_files() == before
        (left,) = runtime.home.boxes.iterdir()
        assert {path.name for path in left.iterdir()} <= {"exit", "shim.stderr", "console.log"}


async def test_a_volume_that_cannot_be_is_refused_before_there_is_a_box(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """One error that names the field, and no directory, shim or descriptor."""
    before = open_files()
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        with pytest.raises(boxlite.InvalidOptionError, match="directory or file") as caught:
            async with runtime.open_box(volumes=[boxlite.Volume(tmp_path / "missing", "/data")]):
                pytest.fail("the box started")
        assert caught.value.field == "volumes[0].source"
        assert list(runtime.home.boxes.iterdir()) == []
    assert engine.shims == {}
    assert open_files() == before


def image(home: HomeLayout, *, working_dir: str = "/", name: str = "one") -> boxlite.Image:
    """Return an image whose root, which all of them have, is an empty file."""
    home.roots.mkdir(parents=True, exist_ok=True)
    (home.roots / "root.squashfs").touch()
    return boxlite.Image(
        name=name,
        digest=f"sha256:{'0' * 64}",
        config=ImageConfig(working_dir=working_dir),
        layers_bytes=1,
        root=home.roots / "root.squashfs",
        root_bytes=0,
        added_at=0.0,
    )


@attrs.define
class Start:
    """A start, as far as the stages of devices look at it."""

    image: boxlite.Image | None
    template: Any = None
    volumes: Any = ()
    options: Any = attrs.field(factory=boxlite.BoxOptions)
    told: list[dict[str, Any]] = attrs.field(factory=list)
    layout: Any = None
    undo: Any = None
    devices: Any = None

    @property
    def session(self) -> Start:
        """Itself is what is told."""
        return self

    async def set_up(self, **what: Any) -> None:  # noqa: ANN401
        """Note what is told."""
        self.told.append(what)


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A prepared home."""
    home = HomeLayout(tmp_path / "home")
    prepare_home(home)
    return home


@pytest.mark.parametrize(
    ("directory", "disk_fd", "told"),
    [
        ("/srv", None, ["/srv"]),
        ("/srv", 9, []),
        ("/" + "x" * 2045, 9, []),
        ("/" + "x" * 2046, 9, ["/" + "x" * 2046]),
        ("/" + "\u1234" * 400, 9, ["/" + "\u1234" * 400]),
    ],
)
async def test_what_the_template_knows_needs_no_word(
    home: HomeLayout, directory: str, disk_fd: int | None, told: list[str]
) -> None:
    """A directory that did not fit into a line of the template's guest does."""
    start: Any = Start(image(home, working_dir=directory), SimpleNamespace(disk_fd=disk_fd))
    await devices.set_up_guest(start)

    assert [each["working_directory"] for each in start.told] == told
    fits = len(devices.order_to_prepare(start)) > 0
    assert fits is (disk_fd is None or not told)


async def test_a_template_is_for_a_root_with_a_directory_and_a_disk(home: HomeLayout) -> None:
    """Its guest has made the one and knows the size of the other; the name does not matter."""
    asked: list[Mapping[str, str] | None] = []

    class Noting:
        async def template(
            self, _machine: object, _make: object, *, image: Mapping[str, str] | None = None
        ) -> SimpleNamespace:
            asked.append(image)
            return SimpleNamespace(close=lambda: None)

    for directory, gib, name, disk in (
        ("/srv", 1, "one", False),
        ("/srv", 1, "two", False),
        ("/srv/two", 1, "one", False),
        ("/srv", 2, "one", False),
        ("/srv", 1, "one", True),
    ):
        layout = home.box(f"{len(asked)}")
        layout.root.mkdir()
        if disk:
            layout.disk.touch()
        start: Any = SimpleNamespace(
            runtime=SimpleNamespace(templates=True),
            image=image(home, working_dir=directory, name=name),
            options=boxlite.BoxOptions(disk_size_gib=gib),
            groundwork=Noting(),
            layout=layout,
            machine=None,
            undo=ExitStack(),
        )
        await find_template(start)

    assert asked[0] == asked[1]
    assert all(asked[0] != other for other in asked[2:])
    assert asked[0] is not None
    # A disk with something on it fits no memory but an image's own, which is not saved.
    assert asked[4] is None


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda patch, start: start.image.root.unlink(), r"root file system is gone: No such file"),
        pytest.param(
            lambda patch, _: patch.setattr("boxlite._startup.devices.copy_sparse", _no_room),
            r"the disk of the box, /.*/disk, cannot be .*: No space left",
        ),
    ],
    ids=["root", "room"],
)
async def test_a_disk_that_cannot_be_had_is_named(
    home: HomeLayout,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[pytest.MonkeyPatch, Any], None],
    words: str,
) -> None:
    """Whatever step of having it fails; nothing stays open."""
    before = open_files()
    layout = home.box("0123456789ab")
    layout.root.mkdir()
    memory = os.open(home.root / "template", os.O_RDWR | os.O_CREAT)
    with ExitStack() as undo:
        undo.callback(os.close, memory)
        start: Any = Start(image(home), SimpleNamespace(disk_fd=memory))
        start.layout, start.undo = layout, undo
        harm(monkeypatch, start)
        with pytest.raises(boxlite.BoxliteError, match=words):
            await devices.open_devices(start)
    assert open_files() == before
