"""The configuration of an image: what its author wants run, and how.

Source: the OCI image specification 1.1, "Image Configuration". Docker's has the
same fields and more, which are not read.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from .descriptor import is_digest
from .document import check_text, parse_object, take_list, take_object, take_text, take_texts
from .manifest import LAYERS_MAX
from .platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_BYTES_MAX: Final = 8 << 20

#: What one argument or variable of Linux may have (MAX_ARG_STRLEN).
_ARGUMENT_MAX: Final = 128 << 10
_ARGUMENTS_MAX: Final = 10_000
_ENTRIES_MAX: Final = 10_000
_LABEL_MAX: Final = 1 << 20
_PATH_MAX: Final = 4095
_PORT: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?")


@attrs.frozen(kw_only=True)
class ImageConfig:
    """What an image says about itself.

    Args:
        env: Variables, each as ``NAME=value``.
        entrypoint: The program that is run, and its first arguments.
        cmd: The arguments after those, or all of it if there is no entrypoint.
        working_dir: An absolute path in the image.
        user: ``user``, ``uid``, ``user:group`` or ``uid:gid``; empty for root.
        exposed_ports: Such as ``80/tcp``.
        volumes: Paths that are meant to be mounted over.
        labels: What else its author said.
        stop_signal: Its name or number; empty for SIGTERM.
        diff_ids: The digests of its layers before they were compressed, the lowest first.
        created: When, as RFC 3339 has it, unchecked; empty if it does not say.
        platform: The machine that it is for; None if it does not say.
    """

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = attrs.field(factory=dict)
    stop_signal: str = ""
    diff_ids: tuple[str, ...] = ()
    created: str = ""
    platform: Platform | None = None

    @property
    def os(self) -> str:
        """The operating system, or empty if it does not say."""
        return self.platform.os if self.platform else ""

    @property
    def architecture(self) -> str:
        """The processor, or empty if it does not say."""
        return self.platform.architecture if self.platform else ""


def parse_config(data: bytes, *, layers: int | None = None) -> ImageConfig:
    """Return what the configuration of an image says.

    Args:
        data: The document.
        layers: How many layers its manifest has. Default: not compared.

    Raises:
        ValueError: It is not one, or does not fit its manifest.
    """
    document = parse_object(data, "its configuration", max_bytes=CONFIG_BYTES_MAX)
    wanted = take_object(document, "config", max_entries=_ENTRIES_MAX)
    labels = take_object(wanted, "Labels", max_entries=_ENTRIES_MAX)
    return ImageConfig(
        env=_env(wanted),
        entrypoint=_command(wanted, "Entrypoint"),
        cmd=_command(wanted, "Cmd"),
        # Docker takes a relative one as below the root, too.
        working_dir=posixpath.join("/", take_text(wanted, "WorkingDir", max_length=_PATH_MAX)),
        user=take_text(wanted, "User", max_length=256),
        exposed_ports=_ports(wanted),
        volumes=_keys(wanted, "Volumes", max_length=_PATH_MAX),
        labels={
            check_text(key, "Labels"): check_text(value, "Labels", max_length=_LABEL_MAX)
            for key, value in labels.items()
        },
        stop_signal=take_text(wanted, "StopSignal", max_length=32),
        diff_ids=_diff_ids(document, layers),
        created=take_text(document, "created", max_length=64),
        platform=_platform(document),
    )


def _env(wanted: dict[str, Any]) -> tuple[str, ...]:
    entries = take_texts(wanted, "Env", max_entries=_ARGUMENTS_MAX, max_length=_ARGUMENT_MAX)
    # One without a value, or without a name, sets nothing; old builders left some.
    return tuple(entry for entry in entries if entry.find("=") > 0)


def _command(wanted: dict[str, Any], name: str) -> tuple[str, ...]:
    # The oldest images have a single text here, and Docker still takes it.
    if isinstance(wanted.get(name), str):
        return (take_text(wanted, name, max_length=_ARGUMENT_MAX),)
    return take_texts(wanted, name, max_entries=_ARGUMENTS_MAX, max_length=_ARGUMENT_MAX)


def _keys(wanted: dict[str, Any], name: str, *, max_length: int) -> tuple[str, ...]:
    # Go's way to write a set: an object of empty objects.
    found = take_object(wanted, name, max_entries=_ENTRIES_MAX)
    return tuple(check_text(key, name, max_length=max_length) for key in found)


def _ports(wanted: dict[str, Any]) -> tuple[str, ...]:
    ports = _keys(wanted, "ExposedPorts", max_length=64)
    for port in ports:
        if _PORT.fullmatch(port) is None:
            raise ValueError(f"it exposes the port {port!r}, which is none")
    return ports


def _diff_ids(document: dict[str, Any], layers: int | None) -> tuple[str, ...]:
    rootfs = take_object(document, "rootfs", max_entries=_ENTRIES_MAX)
    found = take_list(rootfs, "diff_ids", max_entries=LAYERS_MAX)
    for digest in found:
        if not is_digest(digest):
            raise ValueError(f"a layer's digest is {ascii(digest)[:100]}, which is none")
    if layers is not None and len(found) != layers:
        raise ValueError(
            f"its manifest has {layers} layers, and its configuration tells of {len(found)}"
        )
    return tuple(found)


def _platform(document: dict[str, Any]) -> Platform | None:
    os, architecture, variant = (
        take_text(document, name, max_length=64) for name in ("os", "architecture", "variant")
    )
    return Platform(os, architecture, variant) if os and architecture else None
