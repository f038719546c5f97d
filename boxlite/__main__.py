"""``python -m boxlite``: the command line, or without arguments the demo."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; explain how to get it if its libraries are not installed."""
    try:
        import click as _click  # noqa: F401, PLC0415 - only to see whether it is there
        import rich as _rich  # noqa: F401, PLC0415
    except ImportError as exc:
        sys.exit(f"boxlite: the command line needs {exc.name}: pip install 'boxlite[cli]'")
    from boxlite.cli.app import command_line  # noqa: PLC0415 - needs what was just looked for

    command_line()


if __name__ == "__main__":
    main()
