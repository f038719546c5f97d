"""What is built for tests is built once, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import image_cache
import pytest
from image_cache import cached
from image_layout import ToolError


def test_an_entry_is_built_once_by_many_at_once(tmp_path: Path) -> None:
    """Those who come while it is built wait for it."""
    built: list[Path] = []
    begun, go_on = threading.Event(), threading.Event()

    def build(directory: Path) -> None:
        begun.set()
        assert go_on.wait(10)
        (directory / "file").write_text("whole")
        built.append(directory)

    found: list[str] = []

    def get() -> None:
        entry = cached("thing", b"recipe", build, directory=tmp_path)
        found.append((entry / "file").read_text())

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go_on.set()
    for thread in threads:
        thread.join()

    assert (len(built), found) == (1, ["whole"] * 4)


def test_another_recipe_is_another_entry(tmp_path: Path) -> None:
    """And the first one stays for whoever uses it."""

    def build(directory: Path) -> None:
        (directory / "file").touch()

    first, second = (cached("thing", part, build, directory=tmp_path) for part in (b"1", b"2"))
    assert first != second
    assert (first / "file").exists()
    assert (second / "file").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """The next one begins anew."""

    def fail(directory: Path) -> None:
        (directory / "part").touch()
        raise ToolError("no network")

    with pytest.raises(ToolError, match="no network"):
        cached("thing", b"recipe", fail, directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_what_a_killed_build_left_is_tidied_away(tmp_path: Path) -> None:
    """A builder that dies in the middle leaves no entry, and the next one cleans up."""
    script = (
        "import os, signal, sys; from pathlib import Path; from image_cache import cached\n"
        "def build(directory):\n"
        "    (directory / 'part').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cached('thing', b'recipe', build, directory=Path(sys.argv[1]))\n"
    )
    assert run_script(script, tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".thing.*"))) == 1

    entry = cached("thing", b"recipe", lambda directory: None, directory=tmp_path)

    assert list(entry.iterdir()) == []
    assert not list(tmp_path.glob(".thing.*"))


def run_script(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that has the tests' modules, with a directory as its argument."""
    environment = {**os.environ, "PYTHONPATH": str(Path(image_cache.__file__).parent)}
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
