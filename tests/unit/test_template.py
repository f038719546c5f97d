"""The templates of a home, without a machine in them."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from census import open_files

from boxlite._home import prepare_home
from boxlite._layout import HomeLayout
from boxlite._vm.template import (
    TemplateDraft,
    list_templates,
    open_template,
    prune_templates,
    remove_template,
    template_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = {"cpus": "1", "memory_mib": "1"}


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A prepared home."""
    home = HomeLayout(tmp_path / "home")
    prepare_home(home)
    return home


def make(home: HomeLayout, shape: dict[str, str] = SHAPE, *, disk: bool = False) -> Path:
    """Publish a template and return its directory."""
    draft = TemplateDraft(home, memory_mib=1)
    os.pwrite(draft.memory_fd, b"memory", 4096)
    os.write(draft.state_fd, b"state")
    if disk:
        draft.disk.write_bytes(b"disk")
    draft.publish(shape)
    draft.close()
    return home.templates / template_key(shape)


def is_sound(home: HomeLayout, shape: dict[str, str] = SHAPE) -> bool:
    """Open and close a template; tell whether it was there."""
    found = open_template(home, shape)
    if found is None:
        return False
    found.close()
    found.close()
    return True


def test_a_published_template_is_found_by_its_shape(home: HomeLayout) -> None:
    """Its files are what was written, the state from its beginning; tmp is empty."""
    directory = make(home)
    found = open_template(home, SHAPE)

    assert found is not None
    assert os.pread(found.memory_fd, 6, 4096) == b"memory"
    assert os.fstat(found.memory_fd).st_size == 1 << 20
    assert os.read(found.state_fd, 100) == b"state"
    assert found.key == directory.name == template_key(SHAPE)
    found.close()
    assert not is_sound(home, {**SHAPE, "cpus": "2"})
    assert list(home.tmp.iterdir()) == []


def test_the_disk_of_a_template_is_open_with_it(home: HomeLayout) -> None:
    """To be read alone: what is on it fits the memory for as long as nobody writes to it."""
    before = open_files()
    directory = make(home, disk=True)
    found = open_template(home, SHAPE)
    assert found is not None
    assert found.disk_fd is not None
    remove_template(home, directory.name)

    assert os.pread(found.disk_fd, 100, 0) == b"disk"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(found.disk_fd, b"x")
    found.close()
    found.close()
    assert open_files() == before
    assert list_templates(home) == []


def test_a_template_begins_with_a_copy_of_anothers_memory(home: HomeLayout) -> None:
    """The other stays as it is and a template; holes stay holes."""
    make(home)
    base = open_template(home, SHAPE)
    assert base is not None
    draft = TemplateDraft(home, memory_mib=1)
    draft.begin_with(base)
    assert os.pread(draft.memory_fd, 6, 4096) == b"memory"
    assert os.fstat(draft.memory_fd).st_blocks == os.fstat(base.memory_fd).st_blocks
    os.pwrite(draft.memory_fd, b"MEMORY", 4096)
    base.close()
    draft.publish({**SHAPE, "image": "x"})
    draft.close()

    assert is_sound(home)
    assert is_sound(home, {**SHAPE, "image": "x"})
    assert list(home.tmp.iterdir()) == []


def test_a_draft_that_is_not_published_leaves_nothing(home: HomeLayout) -> None:
    """A failed build removes what it had begun, its disk too."""
    draft = TemplateDraft(home, memory_mib=1)
    draft.disk.write_bytes(b"half a disk")
    draft.close()

    assert list(home.tmp.iterdir()) == []
    assert list(home.templates.iterdir()) == []


def _truncate(directory: Path) -> None:
    os.truncate(directory / "memory", 4096)


def _touch_memory(directory: Path) -> None:
    with (directory / "memory").open("r+b") as file:
        file.write(b"x")
    os.utime(directory / "memory", ns=(0, 1))


def _change_state(directory: Path) -> None:
    (directory / "state").write_bytes(b"stat3")


def _link_memory(directory: Path) -> None:
    (directory / "memory").rename(directory / "elsewhere")
    (directory / "memory").symlink_to("elsewhere")


def _touch_disk(directory: Path) -> None:
    (directory / "disk").write_bytes(b"d1sk")
    os.utime(directory / "disk", ns=(0, 1))


def _link_disk(directory: Path) -> None:
    (directory / "disk").rename(directory / "elsewhere")
    (directory / "disk").symlink_to("elsewhere")


def _describe(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "template.json").write_text(text)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _touch_memory,
        _change_state,
        _link_memory,
        _describe(""),
        _describe("[]"),
        _describe("[" * 60_000),
        _touch_disk,
        _link_disk,
        lambda directory: (directory / "disk").unlink(),
        lambda directory: (directory / "memory").unlink(),
        lambda directory: (directory / "state").unlink(),
        lambda directory: (directory / "template.json").unlink(),
    ],
)
def test_a_damaged_template_is_removed_and_not_used(
    home: HomeLayout, damage: Callable[[Path], Any]
) -> None:
    """The next start makes a new one."""
    before = open_files()
    directory = make(home, disk=True)
    damage(directory)

    assert not is_sound(home)
    assert not directory.exists()
    make(home)
    assert is_sound(home)
    # A disk that was never part of it is no part of it now.
    (directory / "disk").write_bytes(b"disk")
    assert not is_sound(home)
    assert open_files() == before


def test_a_template_of_another_shape_under_this_key_is_not_used(home: HomeLayout) -> None:
    """A directory that was renamed by hand is not believed."""
    make(home).rename(home.templates / template_key({"cpus": "2"}))

    assert not is_sound(home, {"cpus": "2"})


def test_the_templates_that_were_used_last_are_kept(home: HomeLayout) -> None:
    """And nothing else is, in a directory that is for templates alone."""
    shapes = [{"cpus": str(number)} for number in range(4)]
    for number, shape in enumerate(shapes):
        os.utime(make(home, shape) / "template.json", (number, number))
    (home.templates / "rubbish").mkdir()
    assert is_sound(home, shapes[0])

    assert [info.machine for info in list_templates(home)] == [
        shapes[0],
        *reversed(shapes[1:]),
    ]
    removed = prune_templates(home, keep=2)

    assert set(removed) == {"rubbish", template_key(shapes[1]), template_key(shapes[2])}
    assert [info.machine for info in list_templates(home)] == [shapes[0], shapes[3]]
    assert all(info.disk_bytes > 0 for info in list_templates(home))
    assert list(home.tmp.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../boxes", "missing", "/etc", "a\0b"])
def test_only_what_is_there_can_be_removed(home: HomeLayout, name: str) -> None:
    """A name never leads out of the directory of templates."""
    make(home)

    assert remove_template(home, name) is False
    assert is_sound(home)
    assert home.boxes.is_dir()


def test_a_home_without_templates_lists_none(tmp_path: Path) -> None:
    """It need not even exist."""
    assert list_templates(HomeLayout(tmp_path / "nowhere")) == []


def test_a_failed_removal_keeps_no_half_template(
    home: HomeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone under its key before the first of its files is."""
    directory = make(home)

    def fail(_path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(PermissionError):
        remove_template(home, directory.name)

    assert not directory.exists()
