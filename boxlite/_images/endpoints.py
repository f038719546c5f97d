"""Where a registry is spoken to, and what may be said to it in the clear."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

import attrs

from boxlite._errors import InvalidOptionError

from .reference import DEFAULT_REGISTRY, is_registry
from .retry import Patience

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

#: Where Docker Hub's registry really is.
_HUB_HOST: Final = "registry-1.docker.io"
IMAGE_BYTES_MAX: Final = 64 << 30


def _check_mirrors(
    _instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, Collection[str]]
) -> None:
    for mirrors in value.values():
        # A text is a collection, too: of letters, each of which could be a host.
        if isinstance(mirrors, str):
            raise InvalidOptionError(attribute.name, mirrors, "a tuple of hosts for each registry")
    hosts = [host for registry, mirrors in value.items() for host in (registry, *mirrors)]
    _check_hosts(_instance, attribute, hosts)


def _check_hosts(
    _instance: object, attribute: attrs.Attribute[Any], value: Collection[str]
) -> None:
    for host in value:
        if not is_registry(host):
            raise InvalidOptionError(attribute.name, host, "host or host:port, and no URL")


def _lower(hosts: Collection[str]) -> frozenset[str]:
    if isinstance(hosts, str):
        raise InvalidOptionError("insecure", hosts, "a set of hosts")
    return frozenset(host.lower() for host in hosts)


def _check_size(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        raise InvalidOptionError(attribute.name, value, "a number of bytes, 1 or more")


@attrs.frozen(kw_only=True)
class RegistryOptions:
    """How registries are dealt with.

    Args:
        mirrors: For a registry the hosts that are asked before it, in their order.
            A mirror that fails in any way is passed over, except for one that sends
            wrong content: that is an error. It is never told the registry's credentials.
        insecure: Hosts, of registries and of what they lead to, that are spoken to in
            plain HTTP. Those of this machine (``localhost``, 127.0.0.0/8, ``::1``)
            always are, all others never.
        ca_file: Certificates, in PEM, of authorities that are trusted besides the usual
            ones. Default: none.
        docker_config: The file with the credentials. Default: Docker's own.
        max_image_bytes: The most that an image may have to download. Default 64 GiB.
        patience: How long and how often is tried.

    Raises:
        InvalidOptionError: A host is a URL or not one at all, or a number is out of range.
    """

    mirrors: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, validator=_check_mirrors)
    insecure: frozenset[str] = attrs.field(
        factory=frozenset, converter=_lower, validator=_check_hosts
    )
    ca_file: Path | None = None
    docker_config: Path | None = None
    max_image_bytes: int = attrs.field(default=IMAGE_BYTES_MAX, validator=_check_size)
    patience: Patience = attrs.field(factory=Patience)


@attrs.frozen
class Endpoint:
    """A place to send requests about a registry to.

    Args:
        name: What credentials are kept under: the host as a reference has it.
        origin: The beginning of its URLs, such as ``https://registry-1.docker.io``.
        is_mirror: Whether it only stands in for the registry.
    """

    name: str
    origin: str
    is_mirror: bool = False


def endpoints_of(registry: str, options: RegistryOptions) -> tuple[Endpoint, ...]:
    """Return where to ask about a registry, in this order: mirrors, then itself."""
    mirrors = (
        Endpoint(host, _origin(host, options), is_mirror=True)
        for host in options.mirrors.get(registry, ())
    )
    host = _HUB_HOST if registry == DEFAULT_REGISTRY else registry
    return (*mirrors, Endpoint(registry, _origin(host, options)))


def _origin(host: str, options: RegistryOptions) -> str:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    clear = is_loopback(name.strip("[]")) or host.lower() in options.insecure
    return f"{'http' if clear else 'https'}://{host}"


def is_loopback(host: str) -> bool:
    """Tell whether a host, without brackets and port, is this machine by its name alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def objection(scheme: str, host: str, port: int | None, options: RegistryOptions) -> str:
    """Say why a URL may not be asked for, or return an empty text if it may.

    Args:
        scheme: Of the URL.
        host: Of the URL, without brackets.
        port: Of the URL, if it has one that is not its scheme's.
        options: Which hosts are insecure.
    """
    if scheme == "https" and host:
        return ""
    if scheme != "http" or not host:
        return "it is not a URL of a web server"
    shown = f"[{host}]" if ":" in host else host
    names = {f"{shown}:{port}"} if port else {shown, f"{shown}:80"}
    if is_loopback(host) or names & options.insecure:
        return ""
    return "it is plain HTTP, and the host is not among those that are insecure"
