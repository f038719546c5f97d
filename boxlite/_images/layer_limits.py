"""How much an image may ask of the machine that unpacks it.

The data is anybody's: a few kilobytes can claim to be petabytes. Everything that is
read, kept or written on behalf of an image is counted against one of these.
"""

from __future__ import annotations

from threading import Lock

import attrs


class LayerError(Exception):
    """A layer that is refused.

    Args:
        member: The name of the member that is at fault, as the layer has it; empty if it
            is none.
        problem: What is wrong, for a person: one sentence without a full stop.
    """

    def __init__(self, member: bytes, problem: str) -> None:
        super().__init__(problem)
        self.member = member
        self.problem = problem


@attrs.frozen(kw_only=True)
class Limits:
    """The most that an image may have. The defaults are far above what images have.

    How deep its directories are is limited by ``path_bytes``.

    Args:
        layer_bytes: Of one layer, decompressed. Default 64 GiB.
        image_bytes: Of all layers, decompressed; and of all files in them, holes
            included. Default 128 GiB.
        ratio: How many times larger a layer may become. Default 200: tars of programs
            and texts stay below 20, and deflate ends at 1032.
        ratio_floor_bytes: What a layer may become whatever it was. Default 64 MiB.
        entries: Members of all layers. Default a million.
        path_bytes: Of a member's path, also after links in it were followed, and of a
            link's target. Default 4095, as Linux has it (PATH_MAX, with its NUL).
        extended_bytes: Of one extended header, or of one map of holes. Default 1 MiB, as
            in Go's ``archive/tar``.
        metadata_bytes: Of all names, targets and extended headers. Default 512 MiB.
        xattr_bytes: Of one member's extended attributes. Default 64 KiB, as Linux has it
            for the value of one (XATTR_SIZE_MAX).
    """

    layer_bytes: int = 64 << 30
    image_bytes: int = 128 << 30
    ratio: int = 200
    ratio_floor_bytes: int = 64 << 20
    entries: int = 1_000_000
    path_bytes: int = 4095
    extended_bytes: int = 1 << 20
    metadata_bytes: int = 512 << 20
    xattr_bytes: int = 64 << 10

    def unpacked_max(self, packed: int) -> int:
        """Return how large a layer of so many bytes may become."""
        return min(self.layer_bytes, max(self.ratio_floor_bytes, self.ratio * packed))


class Budget:
    """What is left of one limit, for all that count against it, in whatever threads.

    Args:
        limit: What there is in the beginning.
        what: What is counted, as the end of "the image has more than 5 ...".
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit = self._left = limit
        self._what = what
        self._lock = Lock()

    def take(self, amount: int, member: bytes = b"") -> None:
        """Take some of it.

        Raises:
            LayerError: There is not as much left.
        """
        with self._lock:
            self._left -= amount
            if self._left >= 0:
                return
        raise LayerError(member, f"the image has more than {self._limit} {self._what}")
