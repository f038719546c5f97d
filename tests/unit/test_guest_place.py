"""Where commands are, and the agent only for the moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from boxlite.guest import kernel
from boxlite.guest.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Moves:
    """Notes where the agent goes. Its own place is any number but 7."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failing = ""
        patch.setattr(kernel, "set_namespace", self._set)

    def _set(self, fd: int, kind: int) -> None:
        assert kind == kernel.CLONE_NEWNS
        where = "theirs" if fd == 7 else "own"
        if where == self.failing:
            raise OSError(12, os.strerror(12), "setns")
        self.made.append(where)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    """No real namespace is entered."""
    return Moves(monkeypatch)


@pytest.fixture
def place(moves: Moves) -> Iterator[Place]:
    """A place with an image; what it has open is closed, and the finders are as before."""
    finders = sys.meta_path[:]
    place = Place()
    place.move_to(7)
    assert not os.get_inheritable(place._own)
    yield place
    os.close(place._own)
    after = sys.meta_path[:]
    sys.meta_path[:] = finders
    assert after == finders


def test_without_an_image_nothing_is_entered(moves: Moves) -> None:
    """A box of the built-in image pays nothing."""
    finders, place = sys.meta_path[:], Place()
    with place.entered():
        assert sys.meta_path == finders

    assert moves.made == []
    assert not place.has_image


def test_nothing_is_imported_from_among_the_images_files(moves: Moves, place: Place) -> None:
    """A module that was loaded before is there; a file of the image's is never looked for."""
    found = set(sys.modules)
    with place.entered():
        import string

        assert string is sys.modules["string"]
        with pytest.raises(ModuleNotFoundError):
            import this  # noqa: F401

    assert moves.made == ["theirs", "own"]
    assert "this" not in set(sys.modules) - found


def test_it_is_entered_and_left_once_however_often_it_is_nested(moves: Moves, place: Place) -> None:
    """Only the outermost block comes back; afterwards it can be entered again."""
    with place.entered():
        with place.entered(), place.entered():
            pass
        assert moves.made == ["theirs"]
        assert len(sys.meta_path) == 2
    with place.entered():
        pass

    assert moves.made == ["theirs", "own"] * 2


@pytest.mark.parametrize("error", [KeyError(), KeyboardInterrupt()])
def test_an_error_of_the_block_comes_back_with_the_agent(
    moves: Moves, place: Place, error: BaseException
) -> None:
    """As itself, from any depth."""
    with pytest.raises(type(error)) as caught, place.entered(), place.entered():
        raise error

    assert caught.value is error
    assert moves.made == ["theirs", "own"]


def test_what_could_not_be_entered_is_entered_the_next_time(moves: Moves, place: Place) -> None:
    """Or the next command would be the agent's neighbour, and not in the image."""
    moves.failing = "theirs"
    with pytest.raises(OSError, match="Cannot allocate"), place.entered():
        pytest.fail("it was not entered")
    moves.failing = ""
    with place.entered():
        assert moves.made == ["theirs"]


_PROGRAM = """
import builtins, json, os, sys
from boxlite.guest import kernel
from boxlite.guest.place import Place
from boxlite.guest.namespaces import make_namespaces

target = sys.argv[1]
opened = open
# To be killed last takes a right that not every root has.
builtins.open = lambda path, *rest, **more: opened(
    "/dev/null" if path == "/proc/self/oom_score_adj" else path, *rest, **more
)
try:
    found = make_namespaces()
except OSError as error:
    print("refused", error.strerror)
    sys.exit()
place = Place()
place.move_to(found.mounts)
before = os.getcwd()
own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid")]
said = {}
with place.furnishing():
    kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NODEV, "size=64k")
    with open(f"{target}/inside", "w"):
        pass
    said["inside"] = os.listdir(target)
    said["cwd"] = os.getcwd()
    os.mkdir(f"{target}/proc")
    found.mount_proc(target, kernel.MS_NODEV)
    said["pids"] = sorted(name for name in os.listdir(f"{target}/proc") if name.isdigit())
    try:
        found.mount_proc(f"{target}/missing", 0)
    except OSError as error:
        said["missing"] = error.strerror
    said["roots"] = [os.path.samestat(os.stat(f"{target}/proc/1/{name}"), os.stat(target))
                     for name in ("root", "cwd")]
    found.enter_root()
    said["roots"].append(os.path.samestat(os.stat(f"{target}/proc/1/root"), os.stat(target)))
said["outside"] = os.listdir(target)
said["same"] = own == [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid")]
kernel.set_namespace(found.processes, kernel.CLONE_NEWPID)
child = os.fork()
if not child:
    os._exit(os.getpid())
said["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os.close(found.orders)
os.waitpid(-1, 0)
print(json.dumps(said))
"""


def test_real_namespaces_are_entered_and_left(tmp_path: Path) -> None:
    """What is mounted in there is there alone, and process 1 shows its own processes."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    if done.stdout.startswith("refused"):
        pytest.skip(f"this user may not make namespaces: {done.stdout}")

    said = json.loads(done.stdout)
    assert said == {
        "inside": ["inside"],
        "cwd": "/",
        "pids": ["1"],
        "missing": "No such file or directory",
        "roots": [False, True, True],
        "outside": [],
        "same": True,
        "child": 2,
    }
    assert list(tmp_path.iterdir()) == []
