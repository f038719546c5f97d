"""What a piece of an image is called: its digest, and the descriptor that points to it.

Source: the OCI image specification 1.1, "Content Descriptors".
"""

from __future__ import annotations

import re
from typing import Final

import attrs

_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Tell whether a text is a digest that is supported: sha256, in lower case."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


@attrs.frozen(kw_only=True)
class Descriptor:
    """A pointer to a piece of an image. Made from JSON of anybody's, so it checks itself.

    Args:
        media_type: What the piece is.
        digest: ``sha256:`` and 64 hexadecimal digits.
        size: Its bytes, as they are stored and sent.

    Raises:
        ValueError: A field is not what the specification has.
    """

    media_type: str
    digest: str
    size: int

    def __attrs_post_init__(self) -> None:
        if not is_digest(self.digest):
            raise ValueError(f"the digest {str(self.digest)[:100]!r} is not a sha256 digest")
        if type(self.size) is not int or not 0 <= self.size < 1 << 50:
            raise ValueError(f"the size of {self.digest} is {str(self.size)[:100]!r}")
        if not isinstance(self.media_type, str) or len(self.media_type) > 255:
            raise ValueError(f"the media type of {self.digest} is none")

    @property
    def hex(self) -> str:
        """The digest without its algorithm, fit to be a file name."""
        return self.digest.partition(":")[2]
