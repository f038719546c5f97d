"""The commands of ``python -m boxlite`` and what they take."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

import boxlite
from boxlite._options import BUILTIN_IMAGE

from . import templates
from .box_arguments import CPUS, MEMORY, BoxArguments, box_options, machine, takes_box
from .demo import demo
from .doctor import doctor
from .image_commands import images_group, pull_command
from .outcome import errors_as_text, finish
from .run import run
from .shell import shell

if TYPE_CHECKING:
    from boxlite._options import RuntimeFields

_CWD = click.option(
    "-w", "--cwd", metavar="DIR", help="The directory to run in. Default: the image's, or /."
)
_USER = click.option(
    "-u",
    "--user",
    metavar="USER[:GROUP]",
    help="Who runs it, by names that the box has or numbers. Default: the image's, or root.",
)
#: Everything from the first word on that is no option of ours is the command's.
_COMMAND_SETTINGS = {"allow_interspersed_args": False}


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(boxlite.__version__, prog_name="boxlite")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Where boxlite keeps everything. Default: $BOXLITE_HOME, else the user's data directory.",
)
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="Hardware virtualisation (kvm) or software emulation (tcg).",
)
@click.pass_context
def cli(
    context: click.Context, home: Path | None, accelerator: Literal["auto", "kvm", "tcg"]
) -> None:
    """Run untrusted code in real virtual machines.

    Without a command: a demonstration.
    """
    with errors_as_text():
        changes: RuntimeFields = {"accelerator": accelerator}
        if home is not None:
            changes["home"] = home.absolute()
        context.obj = boxlite.RuntimeOptions(**changes)
    if context.invoked_subcommand is None:
        finish(demo, context.obj)


@cli.command("doctor")
@click.pass_obj
def doctor_command(options: boxlite.RuntimeOptions) -> None:
    """Say what was found on this machine, and how to mend what is missing."""
    finish(doctor, options)


@cli.command("prepare")
@click.pass_obj
def prepare_command(options: boxlite.RuntimeOptions) -> None:
    """Get or build all that the first box would have to wait for."""
    finish(partial(templates.build, box={}), options)


@cli.group("templates")
def templates_group() -> None:
    """The saved machines that boxes are started from."""


@templates_group.command("ls")
@click.pass_obj
def templates_ls_command(options: boxlite.RuntimeOptions) -> None:
    """List the templates of the home, the one that was used last first."""
    finish(templates.show, options)


@templates_group.command("build")
@CPUS
@MEMORY
@click.option("--image", help="An image, to have it mounted in the template.")
@click.pass_obj
def templates_build_command(
    options: boxlite.RuntimeOptions, *, cpus: int | None, memory_mib: int | None, image: str | None
) -> None:
    """Make the template for boxes of a shape, or of an image, unless it is there."""
    box = machine(cpus, memory_mib)
    if image is not None:
        box["image"] = image
    finish(partial(templates.build, box=box), options)


@templates_group.command("rm")
@click.argument("keys", nargs=-1, required=True, metavar="TEMPLATE...")
@click.pass_obj
def templates_rm_command(options: boxlite.RuntimeOptions, keys: tuple[str, ...]) -> None:
    """Remove templates. Boxes that were started from them go on."""
    finish(partial(templates.remove, keys=keys), options)


cli.add_command(pull_command)
cli.add_command(images_group)


@cli.command("run", context_settings=_COMMAND_SETTINGS)
@takes_box
@_USER
@_CWD
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Kill the command after so many seconds."
)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on to the command.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run_command(
    options: boxlite.RuntimeOptions,
    *,
    user: str | None,
    cwd: str | None,
    timeout: float | None,
    interactive: bool,
    command: tuple[str, ...],
    **box: Unpack[BoxArguments],
) -> None:
    """Run COMMAND in a box of its own and exit with its code.

    With --image it may be left out: then the image's own entrypoint and command run.
    A COMMAND that is given runs as it is, without the entrypoint.

    128 + n when signal n ended it, 127 when there is no such program, 126 when
    it cannot be executed, 125 when boxlite itself failed, 124 after --timeout.
    """
    if not command and box["image"] == BUILTIN_IMAGE:
        raise click.UsageError("Missing argument 'COMMAND...': the built-in image has none")
    with errors_as_text():
        wanted = box_options(box)

    async def main(options: boxlite.RuntimeOptions) -> int:
        return await run(
            options, wanted, command, cwd=cwd, user=user, timeout=timeout, interactive=interactive
        )

    finish(main, options)


@cli.command("shell", context_settings=_COMMAND_SETTINGS)
@takes_box
@_USER
@_CWD
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def shell_command(
    options: boxlite.RuntimeOptions,
    *,
    user: str | None,
    cwd: str | None,
    command: tuple[str, ...],
    **box: Unpack[BoxArguments],
) -> None:
    """Open a terminal in a box of its own, with a shell or COMMAND on it.

    Exits with its code, as ``run`` does.
    """
    with errors_as_text():
        wanted = box_options(box)
    finish(
        partial(shell, box_options=wanted, command=command or ("sh",), cwd=cwd, user=user), options
    )


def command_line() -> None:
    """Read the arguments and run the command."""
    cli.main(prog_name="boxlite")
