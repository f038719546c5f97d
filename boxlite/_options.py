"""What a runtime and a box can be told, checked when it is given.

Every class here is frozen, and constructing one raises
:class:`~boxlite.InvalidOptionError` for a value that cannot work, naming the
field, the value and what is allowed. So a mistake never reaches the shim.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar

import attrs

from ._errors import InvalidOptionError
from ._layout import default_home
from ._rlimits import checked_rlimits
from ._volume import Volume, checked_volumes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T", "RuntimeOptions", "BoxOptions")

#: The root file system that boxlite itself provides: Python and a shell.
BUILTIN_IMAGE: Final = "builtin"

#: The built-in root boots with 144 and not with 128, where the kernel cannot
#: unpack it; a test boots a box with the least that is allowed.
MEMORY_MIB_MIN: Final = 160
MEMORY_MIB_MAX: Final = 65_536
#: The largest file that ext4 with blocks of 4 KiB has, and hosts commonly are.
DISK_SIZE_GIB_MAX: Final = 16_384
#: Each warm box holds memory all the time.
WARM_MAX: Final = 64
READY_TIMEOUT_DEFAULT: Final = 30.0
READY_TIMEOUT_VARIABLE: Final = "BOXLITE_READY_TIMEOUT"


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_number(low: int, high: int, unit: str) -> Any:  # noqa: ANN401 - attrs validators are untyped
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (_is_whole_number(value) and low <= value <= high):  # type: ignore[operator]
            allowed = f"a whole number from {low} to {high}{unit}"
            raise InvalidOptionError(attribute.name, value, allowed)

    return check


def _seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def check_byte_count(field: str, value: object) -> None:
    """Check a number of bytes.

    Raises:
        InvalidOptionError: It is not a whole number, or is less than 0.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidOptionError(field, value, "a number of bytes, 0 or more")


def check_flag(field: str, value: object) -> None:
    """Check what is true or false, or raise InvalidOptionError."""
    if not isinstance(value, bool):
        raise InvalidOptionError(field, value, "True or False")


def check_seconds(field: str, value: object) -> float:
    """Return a positive, finite number of seconds, or raise InvalidOptionError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidOptionError(field, value, "a positive number of seconds")
    if not (math.isfinite(value) and value > 0):
        raise InvalidOptionError(field, value, "a positive, finite number of seconds")
    return float(value)


def _one_of(*choices: str) -> Any:  # noqa: ANN401 - attrs validators are untyped
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            allowed = " or ".join(repr(choice) for choice in choices)
            raise InvalidOptionError(attribute.name, value, allowed)

    return check


def _truth(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidOptionError(attribute.name, value, "True or False")


def _to_path(value: Any) -> Any:  # noqa: ANN401 - what it cannot convert, the validator refuses
    return Path(value) if isinstance(value, (str, os.PathLike)) and value else value


def _usable_path(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None and attribute.default is None:
        return
    if not isinstance(value, Path) or "\0" in str(value):
        allowed = "a non-empty str or os.PathLike[str], without a NUL character"
        raise InvalidOptionError(attribute.name, value, allowed)
    if not value.is_absolute():
        raise InvalidOptionError(attribute.name, str(value), "an absolute path")


def environment_pairs(field: str, env: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return an environment as pairs, or raise InvalidOptionError.

    The error names the variable, never its value: values may be secrets.
    """
    if env is None:
        return ()
    if not hasattr(env, "items"):
        raise InvalidOptionError(field, type(env).__name__, "a mapping of str to str")
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidOptionError(f"{field} name", name, "a non-empty str without '=' and NUL")
        if not isinstance(value, str) or "\0" in value:
            raise InvalidOptionError(f"{field}[{name!r}]", "(hidden)", "a str without NUL")
    return tuple(env.items())


def _environment(value: Mapping[str, str] | tuple[tuple[str, str], ...] | None) -> Any:  # noqa: ANN401
    # attrs.evolve() hands back what an earlier conversion made.
    return environment_pairs("env", dict(value) if isinstance(value, tuple) else value)


def _default_ready_timeout() -> float:
    text = os.environ.get(READY_TIMEOUT_VARIABLE)
    if text is None:
        return READY_TIMEOUT_DEFAULT
    try:
        return check_seconds(READY_TIMEOUT_VARIABLE, float(text))
    except ValueError:
        allowed = "a positive number of seconds"
        raise InvalidOptionError(READY_TIMEOUT_VARIABLE, text, allowed) from None


def _image(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        allowed = f"{BUILTIN_IMAGE!r} or a reference such as 'alpine:3.20'"
        raise InvalidOptionError(attribute.name, value, allowed)


@attrs.frozen(kw_only=True)
class RuntimeOptions:
    """What holds for every box of one runtime.

    Args:
        home: The directory that holds everything boxlite keeps. Absolute.
            Default ``$BOXLITE_HOME``, else ``boxlite`` in the user's data directory.
        accelerator: ``"auto"`` uses KVM where it truly runs guests and software
            emulation (TCG) elsewhere; ``"kvm"`` insists; ``"tcg"`` never asks.
        qemu: The QEMU program. Default ``$BOXLITE_QEMU``, else
            ``qemu-system-x86_64`` on ``PATH``.
        kernel: A bzImage whose modules are beside it. Default
            ``$BOXLITE_KERNEL``, else the newest readable one in ``/boot``, else
            Debian's package, downloaded and unpacked into the home.
        templates: Start boxes from a saved machine that waits, made when a box of
            that shape is first wanted; False boots every box. Default True.
        warm: Boxes with default options that are kept ready, so that opening one
            takes no start: 0 to 64. Default 0.

    Raises:
        InvalidOptionError: A value is not allowed.
    """

    home: Path = attrs.field(factory=default_home, converter=_to_path, validator=_usable_path)
    accelerator: Literal["auto", "kvm", "tcg"] = attrs.field(
        default="auto", validator=_one_of("auto", "kvm", "tcg")
    )
    qemu: Path | None = attrs.field(default=None, converter=_to_path, validator=_usable_path)
    kernel: Path | None = attrs.field(default=None, converter=_to_path, validator=_usable_path)
    templates: bool = attrs.field(default=True, validator=_truth)
    warm: int = attrs.field(default=0, validator=_whole_number(0, WARM_MAX, ""))


@attrs.frozen(kw_only=True)
class BoxOptions:
    """What one box is to be.

    Args:
        image: The root file system: a reference such as ``"python:3.12-slim"``, pulled if
            the home does not have it; or ``"builtin"``, which is Python and a shell and
            needs no registry. Default ``"builtin"``.
        cpus: Virtual CPUs: 1 to the number that this host has. Default 1.
        memory_mib: Memory in MiB: 160 to 65,536. Default 256.
        disk_size_gib: Room for what is changed in an image, in GiB: 1 to 16,384. It takes
            up space as it is used. Default 10. The built-in image is in memory and has none.
        volumes: Directories and files of the host that the box sees, at most 8.
        rlimits: What each command is limited to, by the names of ulimit: ``core``,
            ``fsize``, ``memlock``, ``nofile``, ``nproc``, ``stack``; a number, or a pair
            (soft, hard), -1 for no limit. Default: the guest's own, with 65,536 files.
        env: Environment variables for every command, over the image's own.
        ready_timeout: Seconds from the start of the VM until the guest must be
            ready. Default ``$BOXLITE_READY_TIMEOUT``, else 30.
        stop_grace: Seconds that commands may take to end after SIGTERM when the
            box is stopped in order: more than 0, at most 10. Default 2.
        detach: Let the box run on when its block ends, however that is, and when
            this program does: see :meth:`Runtime.attach`. Default: no.
        keep: Keep the disk of a box with an image when it has been stopped, so that it can
            be started again with it: see :meth:`Runtime.reopen_box`. Default: no.

    Raises:
        InvalidOptionError: A value is not allowed.
    """

    image: str = attrs.field(default=BUILTIN_IMAGE, validator=_image)
    cpus: int = attrs.field(
        default=1, validator=_whole_number(1, os.cpu_count() or 1, " (the CPUs of this host)")
    )
    memory_mib: int = attrs.field(
        default=256, validator=_whole_number(MEMORY_MIB_MIN, MEMORY_MIB_MAX, " (MiB)")
    )
    disk_size_gib: int = attrs.field(
        default=10, validator=_whole_number(1, DISK_SIZE_GIB_MAX, " (GiB)")
    )
    volumes: tuple[Volume, ...] = attrs.field(default=(), converter=checked_volumes)
    rlimits: tuple[tuple[str, tuple[int, int]], ...] = attrs.field(
        default=(), converter=checked_rlimits
    )
    env: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_environment)
    ready_timeout: float = attrs.field(factory=_default_ready_timeout, validator=_seconds)
    stop_grace: float = attrs.field(default=2.0, validator=_seconds)
    detach: bool = attrs.field(default=False, validator=_truth)
    keep: bool = attrs.field(default=False, validator=_truth)

    @keep.validator
    def _needs_a_disk(self, attribute: attrs.Attribute[bool], value: bool) -> None:  # noqa: FBT001
        if value and self.image == BUILTIN_IMAGE:
            allowed = "False with the built-in image, which has no disk"
            raise InvalidOptionError(attribute.name, value, allowed)

    @stop_grace.validator
    def _bounded(self, attribute: attrs.Attribute[float], value: float) -> None:
        if value > 10:
            raise InvalidOptionError(attribute.name, value, "at most 10 seconds")


class RuntimeFields(TypedDict, total=False):
    """The fields of :class:`RuntimeOptions` as keyword arguments."""

    home: str | os.PathLike[str]
    accelerator: Literal["auto", "kvm", "tcg"]
    qemu: str | os.PathLike[str] | None
    kernel: str | os.PathLike[str] | None
    templates: bool
    warm: int


class BoxFields(TypedDict, total=False):
    """The fields of :class:`BoxOptions` as keyword arguments."""

    image: str
    cpus: int
    memory_mib: int
    disk_size_gib: int
    volumes: Iterable[Volume]
    rlimits: Mapping[str, int | tuple[int, int]]
    env: Mapping[str, str]
    ready_timeout: float
    stop_grace: float
    detach: bool
    keep: bool


def options_from(cls: type[T], given: object, changes: Mapping[str, Any]) -> T:
    """Return options of a class, from an instance, keyword changes, or both.

    Raises:
        InvalidOptionError: ``given`` is of another class, or a keyword is not a field.
    """
    if given is not None and not isinstance(given, cls):
        allowed = f"{cls.__name__} or keyword arguments"
        raise InvalidOptionError("options", type(given).__name__, allowed)
    names = sorted(field.name for field in attrs.fields(cls))
    for name in changes:
        if name not in names:
            raise InvalidOptionError("option name", name, f"one of {', '.join(names)}")
    return cls(**changes) if given is None else attrs.evolve(given, **changes)
