"""The tables of stages: how a box starts, and what it takes to have a template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .devices import find_image, open_devices
from .pipeline import Stage, Together
from .stages import (
    check_host,
    connect_guest,
    keep_record,
    load_session_code,
    make_box_directory,
    make_kit,
    set_up,
    start_shim,
    wait_ready,
)
from .templates import find_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .startup import Startup

#: How every box starts. Without a template it boots; with one it is restored.
BOX_START: Final[Sequence[Stage[Startup] | Together[Startup]]] = (
    Stage("preflight", check_host),
    Together((Stage("guest_kit", make_kit), Stage("image", find_image))),
    Stage("layout", make_box_directory),
    Stage("template", find_template),
    Stage("devices", open_devices),
    Stage("shim", start_shim),
    Together((Stage("guest_ready", wait_ready), Stage("session_code", load_session_code))),
    Stage("guest_connect", connect_guest),
    Stage("guest_setup", set_up),
    Stage("record", keep_record),
)

#: What it takes to have a template, and no box.
TEMPLATE_PREPARATION: Final[Sequence[Stage[Startup] | Together[Startup]]] = (
    Stage("preflight", check_host),
    Together((Stage("guest_kit", make_kit), Stage("image", find_image))),
    Stage("template", find_template),
)
