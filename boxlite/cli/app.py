"""The commands of ``python -m boxlite`` and what they take."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click
import trio

import boxlite

from . import templates
from .demo import demo
from .doctor import doctor
from .run import run
from .shell import shell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from boxlite._options import BoxFields, RuntimeFields

#: What container tools exit with when they, and not the command, failed.
EXIT_BOXLITE = 125
EXIT_INTERRUPTED = 130


_MACHINE_CPUS = click.option("--cpus", type=int, help="Virtual CPUs.")
_ENV = click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable."
)
_CWD = click.option("-w", "--cwd", default="/", show_default=True, help="The directory to run in.")
_MACHINE_MEMORY = click.option("--memory", "memory_mib", type=int, help="Memory in MiB.")


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
@_MACHINE_CPUS
@_MACHINE_MEMORY
@click.pass_obj
def templates_build_command(
    options: boxlite.RuntimeOptions, *, cpus: int | None, memory_mib: int | None
) -> None:
    """Make the template for boxes of a shape, unless it is there."""
    finish(partial(templates.build, box=_machine(cpus, memory_mib)), options)


@templates_group.command("rm")
@click.argument("keys", nargs=-1, required=True, metavar="TEMPLATE...")
@click.pass_obj
def templates_rm_command(options: boxlite.RuntimeOptions, keys: tuple[str, ...]) -> None:
    """Remove templates. Boxes that were started from them go on."""
    finish(partial(templates.remove, keys=keys), options)


@cli.command("run", context_settings={"ignore_unknown_options": True})
@_MACHINE_CPUS
@_MACHINE_MEMORY
@_ENV
@_CWD
@click.option("--timeout", type=float, help="Seconds after which the command is killed.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on to the command.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run_command(
    options: boxlite.RuntimeOptions,
    *,
    cpus: int | None,
    memory_mib: int | None,
    env: tuple[str, ...],
    cwd: str,
    timeout: float | None,
    interactive: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a box of its own and exit with its code.

    128 + n when signal n ended it, 127 when there is no such program, 126 when
    it cannot be executed, 125 when boxlite itself failed.
    """
    box = _box_options(cpus, memory_mib, env)

    async def main(options: boxlite.RuntimeOptions) -> int:
        return await run(options, box, command, cwd=cwd, timeout=timeout, interactive=interactive)

    finish(main, options)


@cli.command("shell", context_settings={"ignore_unknown_options": True})
@_MACHINE_CPUS
@_MACHINE_MEMORY
@_ENV
@_CWD
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def shell_command(
    options: boxlite.RuntimeOptions,
    *,
    cpus: int | None,
    memory_mib: int | None,
    env: tuple[str, ...],
    cwd: str,
    command: tuple[str, ...],
) -> None:
    """Open a terminal in a box of its own, with a shell or COMMAND on it.

    Exits with its code, as ``run`` does.
    """
    box = _box_options(cpus, memory_mib, env)
    finish(partial(shell, box_options=box, command=command or ("sh",), cwd=cwd), options)


def _box_options(
    cpus: int | None, memory_mib: int | None, env: tuple[str, ...]
) -> boxlite.BoxOptions:
    variables = {}
    for item in env:
        name, separator, value = item.partition("=")
        if not separator:
            raise click.UsageError(f"--env {item!r} is not NAME=VALUE")
        variables[name] = value
    with errors_as_text():
        fields = _machine(cpus, memory_mib)
        fields["env"] = variables
        return boxlite.BoxOptions(**fields)


def _machine(cpus: int | None, memory_mib: int | None) -> BoxFields:
    """Return the options that were given, and leave the others to their defaults."""
    fields: BoxFields = {}
    if cpus is not None:
        fields["cpus"] = cpus
    if memory_mib is not None:
        fields["memory_mib"] = memory_mib
    return fields


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Show an error of boxlite as text and exit, instead of with a traceback."""
    try:
        yield
    except boxlite.ExecStartError as exc:
        click.echo(f"boxlite: {exc}", err=True)
        sys.exit(exc.exit_code)
    except boxlite.BoxliteError as exc:
        click.echo(f"boxlite: {exc}", err=True)
        sys.exit(EXIT_BOXLITE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def finish(
    main: Callable[[boxlite.RuntimeOptions], Awaitable[int]], options: boxlite.RuntimeOptions
) -> NoReturn:
    """Run a command's coroutine to its end and exit with what it returns."""
    with errors_as_text():
        code = trio.run(main, options)
    sys.exit(code)


def command_line() -> None:
    """Read the arguments and run the command."""
    cli.main(prog_name="boxlite")
