"""The command line of boxes: images, volumes and limits, and what is run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import pytest
import trio
from fake_images import EXIT_CODE, NAME, FakeRuntime, Runner, make_image
from hypothesis import given, strategies as st

import boxlite
from boxlite._images.config import ImageConfig
from boxlite.cli import box_arguments, shell as shell_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """The runtime that the command line gets."""
    return FakeRuntime.instead(monkeypatch)


@pytest.fixture
def cli(tmp_path: Path) -> Runner:
    """The command line."""
    return Runner(tmp_path / "home")


def test_run_takes_the_box_and_the_command_as_they_are_given(
    cli: Runner, runtime: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option, and of the command nothing: not even what looks like ours."""
    monkeypatch.chdir(tmp_path)
    runtime.images.here = [make_image()]

    done = cli(
        *("run", "--image", NAME, "-v", "src:/src", "--volume", "/data:/data:rw"),
        *("--disk", "3", "--ulimit", "nofile=10:20", "--ulimit", "core=unlimited"),
        *("-e", "A=b=c", "-u", "nobody:nogroup", "--memory", "300"),
        *("python3", "-u", "-v", "--", "-e", "x"),
    )

    assert done.exit_code == EXIT_CODE, done.output
    assert runtime.boxes == [
        boxlite.BoxOptions(
            image=NAME,
            volumes=[
                boxlite.Volume(tmp_path / "src", "/src"),
                boxlite.Volume("/data", "/data", read_only=False),
            ],
            disk_size_gib=3,
            rlimits={"nofile": (10, 20), "core": -1},
            env={"A": "b=c"},
            memory_mib=300,
        )
    ]
    assert runtime.commands == [
        (("python3", "-u", "-v", "--", "-e", "x"), {"cwd": None, "user": "nobody:nogroup"})
    ]
    assert runtime.images.asked == []


def test_run_without_a_command_runs_the_images_own(cli: Runner, runtime: FakeRuntime) -> None:
    """Entrypoint and command; what is not there is pulled first, in silence in a pipe."""
    runtime.images.elsewhere = [make_image()]

    done = cli("run", "--image", NAME, "-w", "/tmp")

    assert (done.exit_code, done.output) == (EXIT_CODE, "")
    assert runtime.images.asked == [("pull", NAME, None, False)]
    assert runtime.commands == [(("/entry", "--serve", "it"), {"cwd": "/tmp", "user": None})]


def test_run_with_a_command_leaves_the_entrypoint_out(cli: Runner, runtime: FakeRuntime) -> None:
    """What was asked for is what runs."""
    runtime.images.here = [make_image()]

    cli("run", "--image", NAME, "--", "ls", "-l")

    assert [command for command, _ in runtime.commands] == [("ls", "-l")]


def test_an_image_without_a_command_starts_no_box(cli: Runner, runtime: FakeRuntime) -> None:
    """There is nothing to run in it: 125, and what to do."""
    runtime.images.here = [make_image(config=ImageConfig())]

    done = cli("run", "--image", NAME)

    assert done.exit_code == 125
    assert "neither an entrypoint nor a command" in done.stderr
    assert runtime.boxes == []


def test_an_image_that_cannot_be_had_starts_no_box(cli: Runner, runtime: FakeRuntime) -> None:
    """125, as text."""
    done = cli("run", "--image", "gone", "true")

    assert (done.exit_code, done.stderr) == (125, "boxlite: the image gone: there is none\n")
    assert runtime.boxes == []


def test_the_builtin_image_needs_no_registry_and_a_command(
    cli: Runner, runtime: FakeRuntime
) -> None:
    """It is the default, and has no command of its own."""
    assert cli("run", "true").exit_code == EXIT_CODE
    assert runtime.images.asked == []
    assert runtime.boxes == [boxlite.BoxOptions()]

    done = cli("run", "--image", "builtin")

    assert done.exit_code == 2
    assert "COMMAND" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-v", "/only"], 2, "--volume '/only' is not HOST:/BOX"),
        (["-v", "/a:/b:rx"], 2, "--volume '/a:/b:rx' is not"),
        (["-v", "/a:b"], 2, "--volume '/a:b' is not"),
        (["-v", ":/b"], 2, "--volume ':/b' is not"),
        (["-v", "/a:/proc/x"], 125, "target is '/proc/x'"),
        (["-v", "/a:/x", "-v", "/b:/x"], 125, "a place of its own"),
        (["--ulimit", "nofile"], 2, "--ulimit 'nofile' is not NAME=SOFT"),
        (["--ulimit", "nofile=1:2:3"], 2, "--ulimit 'nofile=1:2:3' is not"),
        (["--ulimit", "nofile=-2"], 2, "--ulimit 'nofile=-2' is not"),
        (["--ulimit", "files=1"], 125, "rlimits name is 'files'"),
        (["--ulimit", "nofile=3:2"], 125, "a soft limit up to the hard one"),
        (["--disk", "0"], 125, "disk_size_gib is 0"),
        (["--disk", "much"], 2, "'much' is not a valid integer"),
        (["--image", ""], 125, "image is ''"),
        (["-e", "A"], 2, "--env 'A' is not NAME=VALUE"),
        (["--imagge", "x"], 2, "No such option"),
    ],
)
@pytest.mark.parametrize("command", ["run", "shell"])
def test_a_bad_option_of_a_box_is_named(
    cli: Runner, runtime: FakeRuntime, command: str, arguments: list[str], code: int, words: str
) -> None:
    """2 for what has not the form of its option, 125 for a value that boxlite refuses."""
    done = cli(command, *arguments, "--", "true")

    assert done.exit_code == code
    assert words in done.stderr
    assert runtime.boxes == []


def test_a_hosts_path_may_have_colons_and_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place in the box is what follows the last one."""
    monkeypatch.chdir(tmp_path)

    assert box_arguments._volume("a:b:/c:ro") == boxlite.Volume(tmp_path / "a:b", "/c")
    assert box_arguments._volume("/x:/y:/z") == boxlite.Volume("/x:/y", "/z")
    assert box_arguments._volume(".:/here:rw") == boxlite.Volume(tmp_path, "/here", read_only=False)


@given(st.text(alphabet=":/rowa.\n\0", max_size=20))
def test_any_text_is_a_volume_or_refused(text: str) -> None:
    """And a volume can be written again only where its text says so: ``:rw``."""
    try:
        volume = box_arguments._volume(text)
    except (click.UsageError, boxlite.InvalidOptionError):
        return
    assert volume.source.is_absolute()
    assert volume.target.startswith("/")
    assert volume.read_only != text.endswith(":rw")


@given(
    st.sampled_from(["nofile", "as", "core"]),
    st.integers(0, 2**63),
    st.one_of(st.none(), st.integers(0, 2**63)),
)
def test_a_ulimit_is_read_as_it_is_written(name: str, soft: int, hard: int | None) -> None:
    """The hard limit is the soft one if there is none."""
    text = f"{name}={soft}" + (f":{hard}" if hard is not None else "")

    assert box_arguments._ulimit(text) == (name, (soft, soft if hard is None else hard))


@given(st.text(max_size=30))
def test_any_text_is_a_ulimit_or_refused(text: str) -> None:
    """Nothing else comes out."""
    try:
        name, (soft, hard) = box_arguments._ulimit(text)
    except click.UsageError:
        return
    assert name.isascii()
    assert min(soft, hard) >= -1


def test_shell_has_a_shell_of_the_image_on_the_terminal(
    cli: Runner, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its command, which may be a server; and as the user that was asked for."""
    runtime.images.elsewhere = [make_image()]
    sessions: list[dict[str, Any]] = []

    async def session(_self: object, _box: object, command: object, **how: object) -> None:
        await trio.lowlevel.checkpoint()
        sessions.append({"command": command, **how})

    @contextmanager
    def no_terminal(_fd: int) -> Iterator[None]:
        yield

    monkeypatch.setattr(shell_module._Session, "run", session)
    monkeypatch.setattr("os.isatty", lambda _fd: True)
    monkeypatch.setattr(shell_module, "_raw_mode", no_terminal)

    done = cli("shell", "--image", NAME, "-u", "1000", "--disk", "2")

    assert done.exit_code == 0, done.output
    assert sessions == [{"command": ("sh",), "cwd": None, "user": "1000"}]
    assert runtime.boxes == [boxlite.BoxOptions(image=NAME, disk_size_gib=2)]
    assert runtime.images.asked == [("pull", NAME, None, False)]
