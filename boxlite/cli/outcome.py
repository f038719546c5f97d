"""How a command of the command line ends: with an exit code, and an error as text."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click
import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: What container tools exit with when they, and not the command, failed.
EXIT_BOXLITE = 125
EXIT_INTERRUPTED = 130


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Show an error of boxlite as text and exit, instead of with a traceback."""
    try:
        yield
    except boxlite.ExecStartError as exc:
        tell_error(exc)
        sys.exit(exc.exit_code)
    except boxlite.BoxliteError as exc:
        tell_error(exc)
        sys.exit(EXIT_BOXLITE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def tell_error(exc: boxlite.BoxliteError) -> None:
    """Show an error of boxlite on standard error."""
    click.echo(f"boxlite: {exc}", err=True)


def finish(
    main: Callable[[boxlite.RuntimeOptions], Awaitable[int]], options: boxlite.RuntimeOptions
) -> NoReturn:
    """Run a command's coroutine to its end and exit with what it returns."""
    with errors_as_text():
        code = trio.run(main, options)
    sys.exit(code)
