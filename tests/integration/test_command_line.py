"""``python -m boxlite``, as a person runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import READY_TIMEOUT, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence


# What these start is their own; of the session they take the kernel and the root.
pytestmark = pytest.mark.parametrize("stage", [True], ids=[""], indirect=True, scope="session")


@pytest.fixture(scope="module")
def home(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own, with the session's kernel and root file system."""

    async def boot() -> None:
        await stage._shared_box()

    stage.play(boot)
    home = tmp_path_factory.mktemp("cli") / "home"
    home.mkdir(mode=0o700)
    subprocess.run(["cp", "-al", str(stage.home.kit), str(home / "kit")], check=True)
    return home


def boxlite(
    home: Path, arguments: Sequence[str], stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "boxlite", "--home", str(home), *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=300,
        env={**os.environ, "BOXLITE_READY_TIMEOUT": str(READY_TIMEOUT), **env},
    )


def test_run_joins_the_streams_and_exits_with_the_commands_code(home: Path) -> None:
    """Options come before the two dashes, everything after them is the command's."""
    program = "echo $GREETING; pwd; cat; echo err >&2; exit 7"
    done = boxlite(
        home,
        ["run", "-i", "-e", "GREETING=hello", "-w", "/tmp", "--", "sh", "-c", program],
        stdin=b"from here\n",
    )

    assert done.stdout == b"hello\n/tmp\nfrom here\n"
    assert done.stderr == b"err\n"
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["sh", "-c", "kill -9 $$"], 137, b""),
        (["no-such-program"], 127, b"no-such-program"),
        (["/etc/passwd"], 126, b"/etc/passwd"),
    ],
)
def test_run_exits_as_container_users_expect(
    home: Path, command: list[str], code: int, words: bytes
) -> None:
    """128 + n, 127 and 126."""
    done = boxlite(home, ["run", "--", *command])

    assert done.returncode == code
    assert words in done.stderr
    assert b"Traceback" not in done.stderr


def test_run_gives_up_after_a_timeout(home: Path) -> None:
    """With timeout(1)'s code."""
    done = boxlite(home, ["run", "--timeout", "1", "--", "sleep", "1000"])

    assert done.returncode == 124
    assert b"did not end within 1 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--memory", "1", "--", "true"], b"memory_mib is 1: it must be"),
        (["run", "--cpus", "0", "--", "true"], b"cpus is 0: it must be"),
        (["run", "--env", "=x", "--", "true"], b"env name"),
    ],
)
def test_a_bad_option_is_an_error_of_boxlite(
    home: Path, arguments: list[str], words: bytes
) -> None:
    """125, with the error's own text and no traceback."""
    done = boxlite(home, arguments)

    assert done.returncode == 125
    assert words in done.stderr
    assert b"Traceback" not in done.stderr


def test_doctor_says_what_it_found(home: Path) -> None:
    """And that a box can run, since the other tests run some."""
    done = boxlite(home, ["doctor"])

    assert done.returncode == 0
    assert {b"QEMU", b"kernel", b"accelerator", b"disk"} <= set(re.findall(rb"\w+", done.stdout))


def test_doctor_gives_the_fix_for_what_is_missing(home: Path, tmp_path: Path) -> None:
    """And exits with 1."""
    done = boxlite(home, ["doctor"], PATH=str(tmp_path), BOXLITE_QEMU="")

    assert done.returncode == 1
    assert b"apt-get install" in done.stdout
    assert b"cannot run here yet" in done.stdout


def test_prepare_has_nothing_to_do_the_second_time(home: Path) -> None:
    """It names the template that boxes will start from, and so does the list."""
    done = boxlite(home, ["prepare"])

    assert done.returncode == 0
    words = done.stderr.decode().split()
    assert words[0] == "template"
    key = words[1].rstrip(":")
    assert f"\n{key} " in boxlite(home, ["templates", "ls"]).stdout.decode()
    assert list((home / "tmp").iterdir()) == []


def test_the_example_of_the_readme_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word."""
    readme = Path(__file__).parents[2] / "README.md"
    found = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert found is not None
    monkeypatch.setenv("BOXLITE_HOME", str(home))
    monkeypatch.setenv("BOXLITE_READY_TIMEOUT", str(READY_TIMEOUT))

    exec(compile(found[1], "README.md", "exec"), {})

    assert capsys.readouterr().out == "0 b'42\\n'\nb'hello\\n'\n"


def test_a_template_is_built_listed_and_removed(home: Path) -> None:
    """Removing what is not there is told, and fails."""
    built = boxlite(home, ["templates", "build", "--memory", "192"])
    assert built.returncode == 0
    assert b"192 MiB, 1 CPU" in built.stderr
    key = built.stderr.decode().split()[1].rstrip(":")
    assert f"\n{key} " in boxlite(home, ["templates", "ls"]).stdout.decode()

    assert boxlite(home, ["templates", "rm", key]).returncode == 0

    assert key not in boxlite(home, ["templates", "ls"]).stdout.decode()
    again = boxlite(home, ["templates", "rm", key])
    assert again.returncode == 1
    assert key.encode() in again.stderr
