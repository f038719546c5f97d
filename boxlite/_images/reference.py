"""What an image is called: a reference such as ``ghcr.io/owner/image:tag``.

Source: the grammar of github.com/distribution/reference, and the rules by which
Docker completes what people leave out (its ``normalize.go``).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import attrs

from boxlite._errors import InvalidOptionError

from .descriptor import is_digest

#: Docker Hub, where names without a registry are.
DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_LEGACY_REGISTRY: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_REPOSITORY_MAX: Final = 255
_REGISTRY_MAX: Final = 255
#: The longest that can be right: registry, repository, tag of 128, digest of 71.
_TEXT_MAX: Final = 800

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*)|\[(?P<v6>[a-fA-F0-9:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
#: Docker takes 64 hexadecimal digits for the id of an image, and never for a name.
_IMAGE_ID: Final = re.compile(r"[a-f0-9]{64}")

_ALLOWED: Final = "an image reference, such as alpine:3.20 or ghcr.io/owner/image@sha256:..."


def is_registry(text: object) -> bool:
    """Tell whether a text is the host of a registry: ``host``, ``host:port``, ``[::1]:port``."""
    if not isinstance(text, str) or len(text) > _REGISTRY_MAX:
        return False
    match = _REGISTRY.fullmatch(text)
    if match is None or int(match["port"] or 1) not in range(1, 1 << 16):
        return False
    if match["v6"] is None:
        return True
    try:
        ipaddress.IPv6Address(match["v6"])
    except ValueError:
        return False
    return True


@attrs.frozen
class Reference:
    """The full name of an image. Checked when it is made, so its parts are fit for a URL.

    Args:
        registry: The host of the registry, with its port if it has one.
        repository: The path in it, such as ``library/alpine``.
        tag: The tag, if it is asked for by one.
        digest: ``sha256:...``, if it is asked for by that; it wins over the tag.

    Raises:
        InvalidOptionError: A part is not what the grammar has.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __attrs_post_init__(self) -> None:
        for field, value, right, allowed in (
            ("registry", self.registry, is_registry(self.registry), "host or host:port"),
            (
                "repository",
                self.repository,
                len(self.repository) <= _REPOSITORY_MAX
                and _REPOSITORY.fullmatch(self.repository) is not None
                and (self.registry != DEFAULT_REGISTRY or "/" in self.repository),
                f"lower-case words with / between, up to {_REPOSITORY_MAX} characters",
            ),
            (
                "tag",
                self.tag,
                self.tag is None or _TAG.fullmatch(self.tag) is not None,
                "up to 128 letters, digits, underscores, periods and dashes",
            ),
            (
                "digest",
                self.digest,
                self.digest is None or is_digest(self.digest),
                "sha256: and 64 hexadecimal digits in lower case",
            ),
        ):
            if not right:
                raise InvalidOptionError(f"image {field}", value, allowed)
        if self.tag is None and self.digest is None:
            raise InvalidOptionError("image", self.name, "a name with a tag or a digest")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that a text stands for, completed as Docker does it.

        Args:
            text: What a person wrote. Without a registry it is Docker Hub's; without
                a tag and a digest its tag is ``latest``.

        Raises:
            InvalidOptionError: It is no reference.
        """
        if not isinstance(text, str) or not text or len(text) > _TEXT_MAX:
            raise InvalidOptionError("image", text, _ALLOWED)
        if _IMAGE_ID.fullmatch(text):
            raise InvalidOptionError("image", text, f"{_ALLOWED}, and not the id of an image")
        name, at, digest = text.partition("@")
        registry, rest = _split_registry(name)
        repository, colon, tag = rest.partition(":")
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = _OFFICIAL + repository
        if not colon and not at:
            tag = DEFAULT_TAG
        elif not colon:
            return cls._checked(text, registry, repository, None, digest)
        return cls._checked(text, registry, repository, tag, digest if at else None)

    @classmethod
    def _checked(
        cls, text: str, registry: str, repository: str, tag: str | None, digest: str | None
    ) -> Reference:
        try:
            return cls(registry, repository, tag, digest)
        except InvalidOptionError as error:
            part = error.field.removeprefix("image ")
            raise InvalidOptionError(
                "image", text, f"{_ALLOWED}; its {part} must be {error.allowed}"
            ) from None

    @property
    def name(self) -> str:
        """The registry and the repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest text that stands for it, without what Docker would add."""
        short = self.repository
        if self.registry == DEFAULT_REGISTRY:
            rest = short.removeprefix(_OFFICIAL)
            short = short if "/" in rest else rest
            # A repository may begin with what, in front, would be taken for a registry.
            if _split_registry(short) == (DEFAULT_REGISTRY, short) and not _IMAGE_ID.fullmatch(
                short
            ):
                return short + self._suffix
        return str(self)

    @property
    def manifest_key(self) -> str:
        """What the registry is asked for: the digest if there is one, or the tag."""
        key = self.digest or self.tag
        assert key is not None
        return key

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")

    def __str__(self) -> str:
        return self.name + self._suffix


def _split_registry(name: str) -> tuple[str, str]:
    """Split the registry off, by the rules that Docker has for telling whether there is one."""
    first, slash, rest = name.partition("/")
    if not slash:
        return DEFAULT_REGISTRY, name
    if first == _LEGACY_REGISTRY:
        return DEFAULT_REGISTRY, rest
    # No path has an upper-case letter, so that is one too.
    if first == "localhost" or "." in first or ":" in first or first.lower() != first:
        return first, rest
    return DEFAULT_REGISTRY, name


def check_image_name(name: str) -> None:
    """Check what an image of a home is asked for by: a reference, or a digest.

    Raises:
        InvalidOptionError: It is neither.
    """
    if not is_digest(name):
        Reference.parse(name)
