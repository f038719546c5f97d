"""What somebody who waits for an image is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

PieceKind = Literal["manifest", "config", "layer"]
PieceState = Literal["waiting", "downloading", "verified", "cached"]


@attrs.frozen(kw_only=True)
class PullProgress:
    """How far one piece of an image is.

    Args:
        image: The image, as a person would name it.
        digest: The piece.
        kind: What it is.
        state: ``waiting`` for others, ``downloading``, ``verified`` when it is whole
            and in the store, ``cached`` if it had been there already.
        done_bytes: How much of it is on the disk.
        total_bytes: How much there is of it.
    """

    image: str
    digest: str
    kind: PieceKind
    state: PieceState
    done_bytes: int
    total_bytes: int


@attrs.frozen
class Reporter:
    """Tells about the pieces of one image.

    Args:
        image: The image, as a person would name it.
        listener: Who is told; None if nobody is.
    """

    image: str
    listener: Callable[[PullProgress], None] | None

    def tell(
        self, kind: PieceKind, digest: str, state: PieceState, done_bytes: int, total_bytes: int
    ) -> None:
        """Tell how far a piece is."""
        if self.listener is not None:
            self.listener(
                PullProgress(
                    image=self.image,
                    digest=digest,
                    kind=kind,
                    state=state,
                    done_bytes=done_bytes,
                    total_bytes=total_bytes,
                )
            )
