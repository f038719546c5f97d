"""PID 1 of a box: the order of things."""

# ruff: noqa: PLC0415 - each step is imported when it is its turn, so that the console
# tells how far the machine has come.
from __future__ import annotations

from . import console


def main() -> None:
    """Boot, serve and switch the machine off. Nothing ends this process silently."""
    from . import kernel

    console.log("agent starting")
    try:
        _boot_and_serve()
    except BaseException as error:  # noqa: BLE001 - PID 1 has no caller
        console.panic(error)
    finally:
        kernel.power_off()


def _boot_and_serve() -> None:
    from . import boot
    from .namespaces import make_namespaces

    boot.prepare()
    # Now: what is forked is a copy of this process, which is still small.
    namespaces = make_namespaces()
    console.log("machine prepared")

    from . import lean

    lean.leave_out()
    import asyncio

    from .serve import serve

    console.log("agent loaded")
    asyncio.run(serve(namespaces))
    console.log("switching off")


if __name__ == "__main__":
    main()
