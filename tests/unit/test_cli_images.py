"""The command line of images: what it asks a runtime for, and what it makes of the answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import click
import pytest
from fake_images import DIGEST, NAME, FakeRuntime, Runner, make_image

import boxlite
from boxlite._images.config import ImageConfig
from boxlite.cli import app
from boxlite.cli.amounts import age_text, byte_text

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


@pytest.mark.parametrize("command", [["pull"], ["images", "pull"]])
def test_pull_prints_the_digest_and_nothing_else_on_standard_output(
    cli: Runner, runtime: FakeRuntime, command: list[str]
) -> None:
    """A script takes it from there; what happened is on standard error."""
    runtime.images.elsewhere = [make_image()]

    done = cli(*command, "--platform", "linux/arm64", "--insecure", "reg:5000", NAME)

    assert done.exit_code == 0
    assert done.stdout == f"{DIGEST}\n"
    assert done.stderr.splitlines() == [
        "pulling alpine:3.20",
        "layer cdcdcdcdcdcd: 700 B, was there",
        "layer abababababab: 5.0 MiB",
        "unpacking alpine:3.20",
        "making the root of alpine:3.20",
    ]
    assert runtime.images.asked == [("pull", NAME, "linux/arm64", True)]
    assert runtime.registries == boxlite.RegistryOptions(insecure=frozenset({"reg:5000"}))


def test_a_quiet_pull_says_nothing_of_how_far_it_is(cli: Runner, runtime: FakeRuntime) -> None:
    """Only the digest."""
    runtime.images.elsewhere = [make_image()]

    done = cli("pull", "--quiet", NAME)

    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{DIGEST}\n", "")
    assert runtime.images.asked == [("pull", NAME, None, False)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pull", "gone"], "the image gone: there is none"),
        (["pull", "--insecure", "http://x/", NAME], "insecure is 'http://x/'"),
    ],
)
def test_a_pull_that_fails_is_told_in_text(
    cli: Runner, runtime: FakeRuntime, arguments: list[str], words: str
) -> None:
    """With the exit code of boxlite's own failures, and no traceback."""
    done = cli(*arguments)

    assert done.exit_code == 125
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[-1]


def test_images_are_listed_whole_in_a_pipe(cli: Runner, runtime: FakeRuntime) -> None:
    """A name that was cut at 80 columns would be none."""
    long = "registry.example/" + "a" * 150 + ":1"
    runtime.images.here = [make_image(), make_image(long, age=90)]

    done = cli("images", "ls")

    assert done.exit_code == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "DIGEST", "LAYERS", "ROOT", "AGE"],
        [NAME, "0123456789ab", "3.3", "MiB", "5.0", "MiB", "2h"],
        [long, "0123456789ab", "3.3", "MiB", "5.0", "MiB", "1m"],
    ]


def test_images_are_listed_as_json(cli: Runner, runtime: FakeRuntime) -> None:
    """With the names that the interface has, in bytes and Unix seconds."""
    found = make_image()
    runtime.images.here = [found]

    done = cli("images", "ls", "--json")

    assert json.loads(done.stdout) == [
        {
            "name": NAME,
            "digest": DIGEST,
            "layers_bytes": 3_500_000,
            "root_bytes": 5 << 20,
            "added_at": found.added_at,
        }
    ]


def test_no_images_are_an_empty_list(cli: Runner, runtime: FakeRuntime) -> None:
    """JSON is JSON even then."""
    assert json.loads(cli("images", "ls", "--json").stdout) == []


def test_inspect_prints_everything_and_no_control_character(
    cli: Runner, runtime: FakeRuntime
) -> None:
    """A label is its author's: on the terminal it must not do anything."""
    found = make_image()
    runtime.images.here = [found]

    done = cli("images", "inspect", NAME)

    assert done.exit_code == 0
    assert done.stdout.isascii()
    assert all(char.isprintable() or char == "\n" for char in done.stdout)
    (told,) = json.loads(done.stdout)
    assert set(told) == {field.name for field in attrs.fields(boxlite.Image)}
    assert set(told["config"]) == {field.name for field in attrs.fields(ImageConfig)}
    assert told["root"] == str(found.root)
    assert told["config"]["entrypoint"] == ["/entry"]
    assert told["config"]["labels"] == {"author": "\x1b[31mred\x9b"}
    assert told["config"]["platform"]["architecture"] == "amd64"


def test_inspect_tells_what_it_has_and_what_it_has_not(cli: Runner, runtime: FakeRuntime) -> None:
    """And exits with 1."""
    runtime.images.here = [make_image()]

    done = cli("images", "inspect", "gone", NAME)

    assert done.exit_code == 1
    assert [each["name"] for each in json.loads(done.stdout)] == [NAME]
    assert done.stderr == "boxlite: the image gone: there is none\n"


def test_rm_removes_what_it_can(cli: Runner, runtime: FakeRuntime) -> None:
    """One that is used or not there keeps none of the others."""
    runtime.images.here = [make_image("used"), make_image("free")]
    runtime.images.in_use = {"used"}

    done = cli("images", "rm", "used", "gone", "free")

    assert done.exit_code == 1
    assert [each.name for each in runtime.images.here] == ["used"]
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert "used by a box" in told[0]
    assert "the image gone" in told[1]


def test_rm_of_all_that_is_there_exits_with_0(cli: Runner, runtime: FakeRuntime) -> None:
    """And says nothing."""
    runtime.images.here = [make_image()]

    done = cli("images", "rm", NAME)

    assert (done.exit_code, done.output, runtime.images.here) == (0, "", [])


@pytest.mark.parametrize(("options", "names"), [([], ""), (["--all"], "alpine:3.20\n")])
def test_prune_says_what_it_removed(
    cli: Runner, runtime: FakeRuntime, options: list[str], names: str
) -> None:
    """Images with a name only if all are asked for."""
    runtime.images.here = [make_image()]

    done = cli("images", "prune", *options)

    assert (done.exit_code, done.stdout, done.stderr) == (0, names, "3.0 MiB freed\n")


def test_load_prints_what_it_loaded(cli: Runner, runtime: FakeRuntime, tmp_path: Path) -> None:
    """An archive may have several, and one without a name is known by its digest."""
    archive = tmp_path / "images.tar"
    archive.write_bytes(b"")
    runtime.images.elsewhere = [make_image("mine:1"), make_image("0123456789ab")]

    done = cli("images", "load", "--name", "mine:1", str(archive))

    assert done.exit_code == 0
    assert done.stdout == f"mine:1 {DIGEST}\n0123456789ab {DIGEST}\n"
    assert runtime.images.asked == [("load", archive, "mine:1", None, True)]


def test_load_of_what_is_not_there_is_an_error_of_its_use(cli: Runner, tmp_path: Path) -> None:
    """Before a home is even made."""
    done = cli("images", "load", str(tmp_path / "gone.tar"))

    assert done.exit_code == 2
    assert "gone.tar" in done.stderr
    assert not (tmp_path / "home").exists()


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """Give the names of a group's commands and of those below them."""
    for name, command in group.commands.items():
        yield (*names, name)
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


@pytest.mark.parametrize("names", [*commands(app.cli)], ids=" ".join)
def test_every_command_and_option_explains_itself(cli: Runner, names: tuple[str, ...]) -> None:
    """An option without a word of help is a riddle."""
    done = cli(*names, "--help")

    assert done.exit_code == 0
    command: click.Command = app.cli
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.opts[-1] in done.stdout


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3_500_000, "3.3 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_bytes_have_the_unit_that_keeps_them_short(count: int, text: str) -> None:
    """1024.0 KiB would be a mebibyte."""
    assert byte_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (86_399, "23h"), (200_000, "2d")],
)
def test_an_age_has_its_largest_whole_unit(seconds: float, text: str) -> None:
    """A clock that was set back makes nothing younger than new."""
    assert age_text(seconds) == text
