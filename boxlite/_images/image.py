"""An image that is ready: its root file system made, its configuration known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .config import ImageConfig


@attrs.frozen(kw_only=True)
class Image:
    """An image of a home, from which boxes can be opened at once.

    Args:
        name: What it is called: a reference in its familiar form, or a digest.
        digest: That of its manifest.
        config: What its author wants run, and how.
        layers_bytes: What its layers take as they were sent.
        root: Its root file system, a squashfs.
        root_bytes: What that takes.
        added_at: When it came into the home, in Unix seconds.
    """

    name: str
    digest: str
    config: ImageConfig
    layers_bytes: int
    root: Path
    root_bytes: int
    added_at: float

    def command(self, arguments: Sequence[str] = ()) -> tuple[str, ...]:
        """Return what running it means: its entrypoint, with arguments or its own ones.

        Args:
            arguments: In place of its own. Default: its own.
        """
        return (*self.config.entrypoint, *(arguments or self.config.cmd))
