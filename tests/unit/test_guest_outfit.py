"""Giving commands what a host asks for: once, in order, and within what is allowed."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from boxlite._rpc._generated.boxlite.v1 import (
    ImageRoot,
    ResourceLimit,
    SetUpRequest,
    VolumeMount,
)
from boxlite._wire import VOLUMES_MAX
from boxlite.guest import kernel, modules, outfit
from boxlite.guest.confinement import Limits
from boxlite.guest.namespaces import Namespaces
from boxlite.guest.outfit import Outfitter
from boxlite.guest.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NO_LIMIT = (1 << 64) - 1
CORE, NOFILE = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE


class Machine:
    """A machine that only notes what is done to it, and what one wants of it.

    Attributes:
        done: What was done, in order.
        failures: What fails, and how.
    """

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.done: list[str] = []
        self.failures: dict[str, OSError] = {}
        self.root = root
        patch.setattr(modules, "load", lambda group: self.do(f"load {group}"))
        patch.setattr(outfit, "mount_image", self._mount_image)
        patch.setattr(outfit, "write_names", lambda name: self.do(f"name {name}"))
        patch.setattr(outfit, "confine", lambda: self.do("confine"))
        patch.setattr(outfit, "mount_volumes", self._mount_volumes)
        patch.setattr(kernel, "set_namespace", self._enter)
        self.limits = Limits()
        self.place = Place()

    def do(self, what: str) -> None:
        """Note something, or fail at it."""
        self.done.append(what)
        if (failure := self.failures.get(what)) is not None:
            raise failure

    def _mount_image(self, _: Namespaces) -> int:
        self.do("mount image")
        return 4096

    def _mount_volumes(self, wanted: Sequence[VolumeMount]) -> None:
        for each in wanted:
            self.do(f"mount {each.tag}")

    def _enter(self, fd: int, kind: int) -> None:
        if kind == kernel.CLONE_NEWPID:
            self.do(f"children in {fd}")
        else:
            self.do("enter" if fd == 101 else "leave")

    def outfitter(self, *, images: bool = True) -> Outfitter:
        """Return one for it."""
        found = Namespaces(mounts=101, processes=102, orders=103, reports=104)
        return Outfitter(found if images else None, self.place, self.limits)

    def request(self, *tags: str, limits: tuple[ResourceLimit, ...] = ()) -> SetUpRequest:
        """Return a request of an image and volumes."""
        return SetUpRequest(
            image=ImageRoot(working_directory=os.fsencode(self.root / "srv" / "app")),
            volumes=[VolumeMount(tag=tag, path=b"/data") for tag in tags],
            limits=list(limits),
        )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine."""
    return Machine(monkeypatch, tmp_path)


IMAGE = [
    *("load disks", "children in 102"),
    *("enter", "mount image", "leave", "confine", "enter", "leave"),
]


def test_the_image_comes_before_its_names_and_the_volumes(machine: Machine) -> None:
    """A volume is mounted into the image, and its working directory is made."""
    fitter = machine.outfitter()
    fitter.name("box-1")
    assert machine.done == [], "there is no image that could be told"
    answer = fitter.set_up(machine.request("volume0", "volume1"))

    assert machine.done == [
        *("load volumes", *IMAGE),
        *("enter", "name box-1", "leave"),
        *("enter", "leave"),
        *("enter", "mount volume0", "mount volume1", "leave"),
    ]
    assert answer.disk_bytes == 4096
    assert (machine.root / "srv" / "app").is_dir()
    assert machine.place.has_image


def test_an_image_of_a_template_is_named_when_the_box_is(machine: Machine) -> None:
    """It is mounted once, however often that is asked for."""
    fitter = machine.outfitter()
    fitter.prepare(b"")
    fitter.prepare(b"/")
    assert machine.done == IMAGE
    machine.done.clear()
    fitter.name("box-2")
    assert fitter.set_up(machine.request()).disk_bytes == 4096

    named = ["enter", "name box-2", "leave"]
    assert machine.done == [*named, *named, "enter", "leave"]


def test_a_working_directory_that_the_template_has_not_is_made(machine: Machine) -> None:
    """One that was too long for the line to the template's guest."""
    fitter = machine.outfitter()
    fitter.prepare(b"")
    fitter.set_up(machine.request())

    assert (machine.root / "srv" / "app").is_dir()


def test_without_an_image_volumes_go_into_the_agents_own_root(machine: Machine) -> None:
    """Nothing is entered; without volumes nothing is loaded."""
    request = SetUpRequest(volumes=[VolumeMount(tag="volume0", path=b"/data")])
    assert machine.outfitter(images=False).set_up(request).disk_bytes == 0
    assert machine.done == ["load volumes", "mount volume0"]
    machine.done.clear()
    machine.outfitter(images=False).set_up(SetUpRequest())
    assert machine.done == []


def refusal(call: Callable[[], object]) -> tuple[Status, str]:
    """Return what a call is refused with."""
    with pytest.raises(GRPCError) as caught:
        call()
    assert caught.value.message is not None
    return caught.value.status, caught.value.message


def test_a_guest_is_set_up_once(machine: Machine) -> None:
    """Whether it went well or not; a request that is refused at a glance does not count."""
    fitter = machine.outfitter()
    many = machine.request(*(f"volume{n}" for n in range(VOLUMES_MAX + 1)))
    assert refusal(lambda: fitter.set_up(many)) == (
        Status.INVALID_ARGUMENT,
        f"more than {VOLUMES_MAX} volumes",
    )
    machine.failures["mount volume0"] = OSError(2, "No such file", b"/data")
    refusal(lambda: fitter.set_up(machine.request("volume0")))
    machine.done.clear()

    again = (Status.FAILED_PRECONDITION, "the guest has been set up before")
    assert refusal(lambda: fitter.set_up(SetUpRequest())) == again
    assert machine.done == []


def test_an_agent_without_namespaces_runs_no_image(machine: Machine) -> None:
    """Its commands would see the machine."""
    call = machine.outfitter(images=False)
    assert refusal(lambda: call.set_up(machine.request())) == (
        Status.FAILED_PRECONDITION,
        "this agent runs no images",
    )
    assert machine.done == []


@pytest.mark.parametrize(
    ("at", "error", "told"),
    [
        ("load volumes", OSError(8, "Exec format error", "/m/9p.ko"), "/m/9p.ko: Exec format "),
        ("mount image", FileNotFoundError(2, "there is no such disk", "image"), "image: there"),
        ("name box-1", PermissionError(13, "Permission denied", "/etc/hosts"), "/etc/hosts: Per"),
        ("confine", PermissionError(1, "Operation not permitted"), "Operation not permitted"),
        ("mount volume0", OSError(22, "Invalid argument", b"/d\xff"), "/d\udcff: Invalid"),
        ("mount volume0", OSError(22, "Invalid argument", b"/" + b"x" * 4000), "/xxx"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(
    machine: Machine, at: str, error: OSError, told: str
) -> None:
    """With the name of what it is about, and no limit is taken of a request that failed."""
    fitter = machine.outfitter()
    fitter.name("box-1")
    machine.failures[at] = error
    limit = ResourceLimit(resource=CORE, soft=1, hard=1)

    status, message = refusal(lambda: fitter.set_up(machine.request("volume0", limits=(limit,))))

    assert status is Status.FAILED_PRECONDITION
    assert message.startswith(told)
    assert len(message) <= 1000
    assert machine.done.count("enter") == machine.done.count("leave")
    assert machine.limits._wanted == []


def test_the_limits_of_a_request_hold_for_commands(machine: Machine) -> None:
    """In the agent they hold for a moment: what it has is put back, soft and hard."""
    before = [resource.getrlimit(number) for number in (CORE, NOFILE)]
    machine.outfitter(images=False).set_up(
        SetUpRequest(
            limits=[
                ResourceLimit(resource=CORE, soft=0, hard=before[0][1] & NO_LIMIT),
                ResourceLimit(resource=NOFILE, soft=400, hard=before[1][1]),
            ]
        )
    )
    assert [resource.getrlimit(number) for number in (CORE, NOFILE)] == before
    with machine.limits.applied():
        assert resource.getrlimit(CORE) == (0, before[0][1])
        assert resource.getrlimit(NOFILE) == (400, before[1][1])
    with pytest.raises(KeyError), machine.limits.applied():
        raise KeyError

    assert [resource.getrlimit(number) for number in (CORE, NOFILE)] == before


def test_modules_of_a_group_are_loaded_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is there already is no matter; one that is missing is."""
    loaded: list[str] = []

    def load(path: str) -> None:
        loaded.append(path.removeprefix(f"{tmp_path}/"))
        if path.endswith("b.ko"):
            raise FileExistsError
        if path.endswith("d.ko"):
            raise FileNotFoundError(2, "No such file", path)

    monkeypatch.setattr(modules, "MODULES_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(kernel, "load_module", load)
    (tmp_path / "disks.order").write_text("a.ko\nb.ko\nc.ko\n")
    (tmp_path / "volumes.order").write_text("d.ko\ne.ko\n")
    modules.load(modules.DISKS)
    modules.load(modules.BOOT)

    assert loaded == ["a.ko", "b.ko", "c.ko"]
    with pytest.raises(FileNotFoundError):
        modules.load(modules.VOLUMES)
    assert loaded[3:] == ["d.ko"]
