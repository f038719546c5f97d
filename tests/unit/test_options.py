"""Options and commands are refused when they are given, by name, value and what is allowed."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, strategies as st

from boxlite import BoxOptions, InvalidOptionError, RuntimeOptions, TerminalSize, Volume
from boxlite._command import COMMAND_BYTES_MAX, Command, check_command
from boxlite._layout import default_home
from boxlite._options import BoxFields, RuntimeFields, options_from
from boxlite._rlimits import rlimit_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cpus", 0, "a whole number from 1 to"),
        ("cpus", -1, "a whole number from 1 to"),
        ("cpus", 1.5, "a whole number from 1 to"),
        ("cpus", True, "a whole number from 1 to"),
        ("cpus", 100_000, "a whole number from 1 to"),
        ("memory_mib", 1, "a whole number from"),
        ("memory_mib", 1 << 40, "65536"),
        ("memory_mib", "256", "a whole number from"),
        ("image", "", "'builtin' or a reference"),
        ("image", 5, "'builtin' or a reference"),
        ("disk_size_gib", 0, "a whole number from 1 to 16384 (GiB)"),
        ("disk_size_gib", 1.5, "a whole number from 1"),
        ("volumes", "/srv:/srv", "a list of Volume"),
        ("volumes", [Volume("/srv", f"/v{index}") for index in range(9)], "at most 8"),
        ("rlimits", ["nofile"], "a mapping of names to numbers"),
        ("env", ["A=b"], "a mapping of str to str"),
        ("ready_timeout", 0, "a positive, finite number of seconds"),
        ("ready_timeout", float("nan"), "a positive, finite number of seconds"),
        ("ready_timeout", "soon", "a positive number of seconds"),
        ("stop_grace", 11, "at most 10 seconds"),
        ("stop_grace", float("inf"), "a positive, finite number of seconds"),
    ],
)
def test_a_box_option_that_cannot_work_is_refused(field: str, value: object, allowed: str) -> None:
    """The error names the field and what is allowed, and is a ValueError too."""
    changes: dict[str, Any] = {field: value}
    with pytest.raises(InvalidOptionError) as caught:
        BoxOptions(**changes)

    assert caught.value.field == field
    assert allowed in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("home", ""),
        ("home", "relative/home"),
        ("home", "/a\0b"),
        ("home", 5),
        ("home", b"/bytes"),
        ("qemu", "qemu-system-x86_64"),
        ("kernel", ""),
        ("accelerator", "hvf"),
        ("accelerator", None),
        ("templates", 1),
        ("templates", None),
        ("warm", -1),
        ("warm", 65),
        ("warm", True),
        ("warm", 1.0),
    ],
)
def test_a_runtime_option_that_cannot_work_is_refused(field: str, value: object) -> None:
    """Paths are absolute and clean, accelerators are known, numbers and truths are just that."""
    changes: dict[str, Any] = {field: value}
    with pytest.raises(InvalidOptionError) as caught:
        RuntimeOptions(**changes)

    assert caught.value.field == field


def test_a_secret_in_the_environment_does_not_reach_the_error() -> None:
    """The name of a bad variable is shown, its value is not."""
    with pytest.raises(InvalidOptionError) as caught:
        BoxOptions(env={"TOKEN": "hunter2\0"})

    assert "TOKEN" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_environment_survives_evolving() -> None:
    """Changing one field leaves the others as they were."""
    options = BoxOptions(env={"A": "1"})

    assert attrs.evolve(options, cpus=1).env == (("A", "1"),)


@pytest.mark.parametrize(
    ("source", "target", "read_only", "field"),
    [
        ("srv", "/srv", True, "source"),
        ("", "/srv", True, "source"),
        ("/a\0b", "/srv", True, "source"),
        (5, "/srv", True, "source"),
        ("/srv", "srv", True, "target"),
        ("/srv", "/", True, "target"),
        ("/srv", "//", True, "target"),
        ("/srv", "/a/../b", True, "target"),
        ("/srv", "/a\0", True, "target"),
        ("/srv", "/proc/sys", True, "target"),
        ("/srv", "/dev", True, "target"),
        ("/srv", "/srv", "ro", "read_only"),
    ],
)
def test_a_volume_that_cannot_be_is_refused(
    source: Any,  # noqa: ANN401
    target: str,
    read_only: Any,  # noqa: ANN401
    field: str,
) -> None:
    """Both paths are absolute, and the kernel's own directories are taken."""
    with pytest.raises(InvalidOptionError) as caught:
        Volume(source, target, read_only=read_only)

    assert caught.value.field == field


def test_two_volumes_have_two_places() -> None:
    """However a path is written."""
    volumes = [Volume("/srv", "/data"), Volume("/tmp", "/data/")]
    with pytest.raises(InvalidOptionError, match="another has it") as caught:
        BoxOptions(volumes=volumes)

    assert caught.value.field == "volumes[1].target"


def test_a_volume_is_read_only_unless_it_is_said() -> None:
    """Untrusted code is what it is for."""
    assert Volume("/srv", "/srv").read_only
    assert BoxOptions(volumes=[Volume("/srv", "/srv")]).volumes[0].source == Path("/srv")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", 1),
        ("nofile", -2),
        ("nofile", "many"),
        ("nofile", (1, 2, 3)),
        ("nofile", (2, 1)),
        ("nofile", (-1, 5)),
        ("nofile", 1 << 64),
    ],
)
def test_a_limit_that_cannot_be_set_is_refused(name: str, value: Any) -> None:  # noqa: ANN401
    """The error names the limit."""
    with pytest.raises(InvalidOptionError, match="rlimits"):
        BoxOptions(rlimits={name: value})


def test_limits_are_pairs_and_numbers_for_the_kernel() -> None:
    """One number stands for both, and -1 for none."""
    options = BoxOptions(rlimits={"core": 0, "nofile": (10, 20), "stack": -1})
    none = (1 << 64) - 1

    assert attrs.evolve(options, cpus=1).rlimits == options.rlimits
    assert rlimit_numbers(options.rlimits) == [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 10, 20),
        (resource.RLIMIT_STACK, none, none),
    ]


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf", ""])
def test_a_bad_timeout_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The environment is checked like an argument."""
    monkeypatch.setenv("BOXLITE_READY_TIMEOUT", text)
    with pytest.raises(InvalidOptionError, match="BOXLITE_READY_TIMEOUT"):
        BoxOptions()


def test_the_timeout_variable_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow hosts set it once for every program."""
    monkeypatch.setenv("BOXLITE_READY_TIMEOUT", "90.5")

    assert BoxOptions().ready_timeout == 90.5


def test_the_home_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """BOXLITE_HOME wins over XDG_DATA_HOME, which must be absolute to count."""
    monkeypatch.setenv("BOXLITE_HOME", str(tmp_path / "own"))
    assert default_home() == tmp_path / "own"
    monkeypatch.delenv("BOXLITE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_home() == tmp_path / "boxlite"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_home() == Path.home() / ".local" / "share" / "boxlite"


def test_an_unknown_option_lists_the_known_ones() -> None:
    """A typing error is answered with what there is."""
    with pytest.raises(
        InvalidOptionError,
        match="memory.*one of cpus, detach, disk_size_gib, env, image",
    ):
        options_from(BoxOptions, None, {"memory": 256})
    with pytest.raises(InvalidOptionError, match="BoxOptions or keyword arguments"):
        options_from(BoxOptions, RuntimeOptions(home="/h"), {})


def checked(command: Any, **changes: Any) -> Command:  # noqa: ANN401
    """Check a command with everything else as usual."""
    env: Mapping[str, str] | None = changes.get("env")
    return check_command(
        command,
        env=env,
        cwd=changes.get("cwd", "/"),
        terminal=changes.get("terminal"),
        beneath=changes.get("beneath", ()),
    )


@pytest.mark.parametrize(
    ("command", "field", "allowed"),
    [
        ([], "command", "a program and its arguments"),
        ([""], "command", "a program and its arguments"),
        ("echo hi", "command", "a list of arguments"),
        (b"echo", "command", "a list of arguments"),
        (["echo", "a\0b"], "command[1]", "without a NUL character"),
        (["echo", 5], "command[1]", "a str, bytes or os.PathLike"),
        (["echo", None], "command[1]", "a str, bytes or os.PathLike"),
        (["echo", "x" * 200_000], "command[1]", "at most 131071 bytes"),
        (["x" * 100_000] * 6, "command", f"at most {COMMAND_BYTES_MAX} bytes"),
    ],
)
def test_a_command_that_no_program_can_be_given_is_refused(
    command: object, field: str, allowed: str
) -> None:
    """The error names the argument by its place."""
    with pytest.raises(InvalidOptionError) as caught:
        checked(command)

    assert caught.value.field == field
    assert allowed in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("cwd", ["relative", "", "/a\0b"])
def test_a_working_directory_is_absolute(cwd: str) -> None:
    """The guest has no current directory that a relative path could mean."""
    with pytest.raises(InvalidOptionError, match="cwd"):
        checked(["true"], cwd=cwd)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": 5}, {5: "x"}, {"A": "\0"}, "A=B"])
def test_an_environment_that_no_program_can_be_given_is_refused(env: object) -> None:
    """Names are non-empty and without '='; nothing holds a NUL."""
    with pytest.raises(InvalidOptionError, match="env"):
        checked(["true"], env=env)


def test_variables_of_the_command_cover_those_of_the_box_and_of_boxlite() -> None:
    """The nearer one wins."""
    env = dict(checked(["true"], env={"A": "command"}, beneath=(("A", "box"), ("HOME", "/b"))).env)

    assert env[b"A"] == b"command"
    assert env[b"HOME"] == b"/b"
    assert env[b"PATH"].startswith(b"/usr/local/sbin:")
    assert b"TERM" not in env


def test_a_terminal_brings_its_type() -> None:
    """Programs in a terminal need TERM."""
    assert (b"TERM", b"xterm-256color") in checked(["sh"], terminal=TerminalSize()).env
    with pytest.raises(InvalidOptionError, match="rows"):
        TerminalSize(rows=0)
    with pytest.raises(InvalidOptionError, match="columns"):
        TerminalSize(columns=65_536)


@given(st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=20)), max_size=5))
def test_any_arguments_are_taken_as_they_are_or_refused(words: list[str | bytes]) -> None:
    """What is taken reaches the kernel unchanged, in the file system's encoding."""
    try:
        command = checked(words)
    except InvalidOptionError:
        assert not words or not words[0] or any("\0" in os.fsdecode(word) for word in words)
    else:
        assert command.argv == tuple(os.fsencode(word) for word in words)


@pytest.mark.parametrize(
    ("options", "fields"), [(BoxOptions, BoxFields), (RuntimeOptions, RuntimeFields)]
)
def test_every_option_can_be_given_as_a_keyword(options: type[Any], fields: type[Any]) -> None:
    """What a type checker accepts is what the class takes."""
    assert set(fields.__annotations__) == {field.name for field in attrs.fields(options)}
