"""The boxes that a home has on disk, without one that runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

import boxlite
from boxlite._home import prepare_home
from boxlite._images.config import ImageConfig
from boxlite._layout import HomeLayout
from boxlite._options import BoxOptions
from boxlite._process import process_start_time
from boxlite._residents import Residents, new_id
from boxlite._startup.record import Record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from boxlite._layout import BoxLayout

BOX = "0123456789ab"
OTHER = "ba9876543210"
NONCE = "0123456789abcdef" * 2


class Town:
    """A home, and a way to have boxes in it."""

    def __init__(self, root: Path) -> None:
        self.home = HomeLayout(root)
        prepare_home(self.home)
        self.residents = Residents(self.home)

    def box(
        self,
        box_id: str = BOX,
        *,
        record: bool = True,
        disk: bool = True,
        alive: bool = False,
        root: str = "",
    ) -> BoxLayout:
        """Make a box: what it has of record, disk, life, and image."""
        layout = self.home.box(box_id)
        layout.root.mkdir()
        if record:
            write_record(layout, self.record(root))
        if disk:
            layout.disk.write_bytes(b"disk")
        if alive:
            layout.shim_pid.write_text(f"{os.getpid()}\n{process_start_time(os.getpid())}\n")
        return layout

    def record(self, root: str = "") -> Record:
        """Return what is written down of a box."""
        image = boxlite.Image(
            name="alpine:latest",
            digest=f"sha256:{'0' * 64}",
            config=ImageConfig(),
            layers_bytes=1,
            root=self.home.roots / root,
            root_bytes=2,
            added_at=3.0,
        )
        options = BoxOptions(detach=True, memory_mib=512)
        return Record(options=options, nonce=NONCE, image=image if root else None)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """An empty home."""
    return Town(tmp_path / "home")


def test_a_new_id_is_one_that_is_taken_back(town: Town) -> None:
    """No two are the same, and each is a host name."""
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    for box_id in made:
        with pytest.raises(boxlite.InvalidOptionError, match="the id of a box in"):
            town.residents.stopped("x", box_id, with_disk=False)


@pytest.mark.parametrize(
    "box_id",
    [
        *("", ".", "..", "../boxes", "/etc", "a\0b", "0123456789a", BOX + "c", BOX + "\n"),
        *("0123456789aB", "0123456789a/", "\u0660123456789ab", None, 7, BOX.encode(), ["x"]),
    ],
)
def test_what_is_no_id_never_becomes_a_path(
    town: Town, monkeypatch: pytest.MonkeyPatch, box_id: str
) -> None:
    """It is refused before anything is looked at."""
    monkeypatch.setattr(HomeLayout, "box", lambda *_: pytest.fail("a path was made"))
    with pytest.raises(boxlite.InvalidOptionError, match="12 letters a-z and digits"):
        town.residents.detached("x", box_id)
    with pytest.raises(boxlite.InvalidOptionError, match="12 letters a-z and digits"):
        town.residents.stopped("x", box_id, with_disk=False)


@pytest.mark.parametrize(
    ("made", "with_disk", "problem"),
    [
        ({}, True, ""),
        ({"disk": False}, False, ""),
        ({"disk": False}, True, "without a disk"),
        ({"record": False}, True, "without a disk"),
        ({"alive": True}, True, "running"),
        ({"alive": True, "record": False}, False, "running"),
    ],
)
def test_a_box_that_does_not_run_can_be_used_again(
    town: Town, made: dict[str, bool], with_disk: bool, problem: str
) -> None:
    """With its disk, if that is what for; and what it was is what was written down."""
    town.box(**made)  # type: ignore[arg-type]
    if not problem:
        found = town.residents.stopped("go on", BOX, with_disk=with_disk)
        # What is to be removed is not read: it may be damaged.
        nothing = Record(options=BoxOptions(), nonce="")
        assert found == (town.record() if with_disk else nothing)
        return
    with pytest.raises(boxlite.StateError, match=f"cannot go on.*{problem}"):
        town.residents.stopped("go on", BOX, with_disk=with_disk)


def test_a_dead_box_without_a_record_can_be_removed(town: Town) -> None:
    """It failed, and is nothing that could be started."""
    town.box(record=False)

    assert town.residents.stopped("x", BOX, with_disk=False) == Record(
        options=BoxOptions(), nonce=""
    )


@pytest.mark.parametrize("alive", [True, False])
def test_a_detached_box_is_one_with_a_record(town: Town, alive: bool) -> None:
    """One without is another program's, or its remains."""
    town.box(alive=alive)
    town.box(OTHER, alive=alive, record=False)

    assert town.residents.detached("attach", BOX) == town.record()
    if alive:
        with pytest.raises(boxlite.StateError, match=r"cannot attach.*not detached"):
            town.residents.detached("attach", OTHER)
    else:
        assert town.residents.detached("attach", OTHER).nonce == ""


def test_a_box_is_open_once(town: Town) -> None:
    """Until its block has ended, however it ends; others are not touched by it."""
    town.box()
    town.box(OTHER)
    with pytest.raises(KeyError), town.residents.using(BOX):
        with pytest.raises(boxlite.StateError, match="open in it"):
            town.residents.detached("x", BOX)
        with pytest.raises(boxlite.StateError, match="open in it"):
            town.residents.stopped("x", BOX, with_disk=True)
        town.residents.stopped("x", OTHER, with_disk=True)
        raise KeyError

    assert town.residents.stopped("x", BOX, with_disk=True) == town.record()


def test_the_roots_that_boxes_need_are_known(town: Town) -> None:
    """Those of boxes that stopped too, and each once; what is no box needs none."""
    assert town.residents.roots() == set()
    town.box(root="a.squashfs")
    town.box(OTHER, root="b.squashfs", alive=True)
    town.box("000000000000", root="a.squashfs", disk=False)
    town.box("111111111111")
    town.box("222222222222", record=False)
    (town.home.boxes / "file").write_text("x")

    assert town.residents.roots() == {"a.squashfs", "b.squashfs"}


def _change(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _change("version", to=2),
        _change("nonce", to="x"),
        _change("nonce", to=7),
        _change("options", to=None),
        _change("options", "volumes", to=7),
        _change("options", "volumes", to=[{"source": "/a"}]),
        _change("options", "volumes", to=[{"source": "relative", "target": "/a"}]),
        _change("options", "rlimits", to=[["nofile"]]),
        _change("options", "rlimits", to=[["nofile", 1]]),
        _change("options", "cpus", to="many"),
        _change("image", to=[]),
        _change("image", to={}),
        _change("image", "root", to="../../etc/passwd"),
        _change("image", "root", to=7),
        _change("image", "colour", to="red"),
        _change("image", "config", "colour", to="red"),
        _change("image", "config", to=[]),
        _change("image", "config", to="x"),
    ],
)
def test_a_damaged_record_is_one_error_and_needs_no_root(
    town: Town, damage: Callable[[dict[str, Any]], None]
) -> None:
    """It names the file; and other boxes are not held up by it."""
    layout = town.box(root="a.squashfs")
    town.box(OTHER, root="b.squashfs")
    record = json.loads(layout.record.read_text())
    damage(record)
    layout.record.write_text(json.dumps(record))

    assert town.residents.roots() == {"b.squashfs"}
    with pytest.raises(boxlite.HostError, match=f"{layout.record} does not say"):
        town.residents.detached("x", BOX)
    with pytest.raises(boxlite.HostError, match=f"{layout.record} does not say"):
        town.residents.stopped("x", BOX, with_disk=True)
