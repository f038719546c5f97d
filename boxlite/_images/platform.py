"""What machine an image is made for.

Source: the platform object of the OCI image index, whose values are those of Go's
GOOS and GOARCH, and containerd's rules for what runs where (its ``platforms``).
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from boxlite._errors import InvalidOptionError

_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VARIANT: Final = re.compile(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_ALLOWED: Final = "os/architecture, such as linux/amd64"
#: What is meant where no variant is said.
_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@attrs.frozen
class Platform:
    """A kind of machine.

    Args:
        os: The operating system, as Go calls it. Default: ``linux``.
        architecture: The processor, as Go calls it. Default: ``amd64``.
        variant: A generation of it, such as ``v3``; empty for the one that is usually meant.

    Raises:
        InvalidOptionError: A part has other characters than such names have.
    """

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __attrs_post_init__(self) -> None:
        parts = [self.os, self.architecture, *([self.variant] if self.variant else [])]
        if not all(isinstance(part, str) and _PART.fullmatch(part) for part in parts):
            raise InvalidOptionError("platform", "/".join(map(str, parts)), _ALLOWED)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return the platform that a text such as ``linux/arm64/v8`` stands for.

        Raises:
            InvalidOptionError: It stands for none.
        """
        parts = text.split("/") if isinstance(text, str) else []
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InvalidOptionError("platform", text, _ALLOWED)
        os, architecture, *variant = parts
        return cls(os, _ARCHITECTURES.get(architecture, architecture), *variant)

    def rank(self, offered: Platform) -> tuple[int, ...] | None:
        """Return how well what is made for another platform runs on this one.

        Returns:
            A number that is higher for what fits better; None if it does not run.
        """
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return None
        default = _VARIANTS.get(self.architecture, "")
        wanted, given = self.variant or default, offered.variant or default
        mine, theirs = _VARIANT.fullmatch(wanted), _VARIANT.fullmatch(given)
        if mine is None or theirs is None:
            return (0,) if wanted == given else None
        own, other = _numbers(mine), _numbers(theirs)
        # A processor runs what was made for those before it.
        return other if other <= own else None

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}/{self.architecture}{variant}"


def _numbers(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number or 0) for number in match.groups())
