"""What ``run`` and ``shell`` take about the box, and the options that it means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, TypeVar

import attrs
import click

import boxlite
from boxlite._options import BUILTIN_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from boxlite._options import BoxFields

F = TypeVar("F", bound="Callable[..., object]")

#: A host's path may have colons; the box's is what follows the last one and a slash.
_VOLUME: Final = re.compile(
    r"(?P<source>.+):(?P<target>/[^:]*)(?::(?P<mode>ro|rw))?", flags=re.DOTALL
)
_ULIMIT: Final = re.compile(
    r"(?P<name>[a-z]+)=(?P<soft>-1|[0-9]{1,20}|unlimited)(?::(?P<hard>-1|[0-9]{1,20}|unlimited))?"
)

_FIELDS: Final = attrs.fields_dict(boxlite.BoxOptions)

CPUS: Final = click.option(
    "--cpus", type=int, metavar="NUMBER", help=f"Virtual CPUs. Default: {_FIELDS['cpus'].default}."
)
MEMORY: Final = click.option(
    "--memory",
    "memory_mib",
    type=int,
    metavar="MIB",
    help=f"Memory in MiB. Default: {_FIELDS['memory_mib'].default}.",
)
_OPTIONS: Final = (
    click.option(
        "--image",
        default=BUILTIN_IMAGE,
        show_default=True,
        metavar="IMAGE",
        help="The root file system: an image, pulled if it is not there,"
        " or the built-in one with Python and a shell.",
    ),
    CPUS,
    MEMORY,
    click.option(
        "--disk",
        "disk_size_gib",
        type=int,
        metavar="GIB",
        help="Room for what is changed in an image, in GiB; it takes space as it is used."
        f" Default: {_FIELDS['disk_size_gib'].default}.",
    ),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="HOST:BOX[:ro|rw]",
        help="A directory or file of the host, and where the box sees it; repeatable."
        " Read-only unless it says rw.",
    ),
    click.option(
        "--ulimit",
        "ulimits",
        multiple=True,
        metavar="NAME=SOFT[:HARD]",
        help="A limit of the command, such as nofile=1024:4096, by ulimit's names; -1 or"
        " unlimited for none; repeatable.",
    ),
    click.option(
        "-e", "--env", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable."
    ),
)


class BoxArguments(TypedDict):
    """What the options of :func:`takes_box` give to a command."""

    image: str
    cpus: int | None
    memory_mib: int | None
    disk_size_gib: int | None
    volumes: tuple[str, ...]
    ulimits: tuple[str, ...]
    env: tuple[str, ...]


def takes_box(command: F) -> F:
    """Give a command the options that say what box it is to have: :class:`BoxArguments`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def box_options(arguments: BoxArguments) -> boxlite.BoxOptions:
    """Return the box that was asked for.

    Raises:
        click.UsageError: A text is not of the form that its option has.
        InvalidOptionError: A value is not allowed.
    """
    fields = machine(arguments["cpus"], arguments["memory_mib"])
    if arguments["disk_size_gib"] is not None:
        fields["disk_size_gib"] = arguments["disk_size_gib"]
    fields["image"] = arguments["image"]
    fields["volumes"] = [_volume(text) for text in arguments["volumes"]]
    fields["rlimits"] = dict(_ulimit(text) for text in arguments["ulimits"])
    fields["env"] = dict(_variables(arguments["env"]))
    return boxlite.BoxOptions(**fields)


def machine(cpus: int | None, memory_mib: int | None) -> BoxFields:
    """Return the options that were given, and leave the others to their defaults."""
    fields: BoxFields = {}
    if cpus is not None:
        fields["cpus"] = cpus
    if memory_mib is not None:
        fields["memory_mib"] = memory_mib
    return fields


def _variables(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError(f"--env {text!r} is not NAME=VALUE")
        yield name, value


def _volume(text: str) -> boxlite.Volume:
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise click.UsageError(f"--volume {text!r} is not HOST:/BOX, HOST:/BOX:ro or HOST:/BOX:rw")
    # Not resolved: a link at its end is followed when the box is started.
    source = Path(match["source"]).absolute()
    return boxlite.Volume(source, match["target"], read_only=match["mode"] != "rw")


def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    match = _ULIMIT.fullmatch(text)
    if match is None:
        raise click.UsageError(f"--ulimit {text!r} is not NAME=SOFT or NAME=SOFT:HARD")
    soft = _limit(match["soft"])
    return match["name"], (soft, soft if match["hard"] is None else _limit(match["hard"]))


def _limit(text: str) -> int:
    return -1 if text == "unlimited" else int(text)
