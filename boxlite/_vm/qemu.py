"""Finding QEMU, and which version it is."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import attrs
import trio

from boxlite._errors import HostError, InvalidOptionError
from boxlite._program import ask

from .memo import recall, remember

PROGRAM: Final = "qemu-system-x86_64"
VARIABLE: Final = "BOXLITE_QEMU"
#: Ubuntu 22.04's: the oldest in a distribution that is still looked after.
#: All that boxlite asks of QEMU is in it.
OLDEST: Final = (6, 2, 0)
#: 20-60 ms are usual; the first start after a boot reads 20 MB from a slow disk.
VERSION_SECONDS: Final = 10.0
#: The name of the file that keeps the version.
CACHE_NAME: Final = "qemu-version.json"

_INSTALL: Final = (
    "Install it (Debian, Ubuntu: `sudo apt-get install qemu-system-x86`),"
    f" or give its path as RuntimeOptions.qemu or {VARIABLE}."
)
_VERSION = re.compile(r"QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?[^\n]*")


@attrs.frozen
class QemuVersion:
    """A version of QEMU.

    Args:
        number: Major, minor and micro.
        text: The line in which it says so, which names the package too.
    """

    number: tuple[int, int, int]
    text: str

    def __str__(self) -> str:
        return ".".join(map(str, self.number))


def find_qemu(override: Path | None = None) -> Path:
    """Return the absolute path of the QEMU to use. Runs nothing.

    Args:
        override: What to use instead of ``$BOXLITE_QEMU`` and of
            ``qemu-system-x86_64`` on ``PATH``: a path, or a name to look up there.

    Raises:
        InvalidOptionError: The option or the variable names no program.
        HostError: Neither was given, and there is none on ``PATH``.
    """
    if override is not None:
        return _given("qemu", os.fspath(override))
    if text := os.environ.get(VARIABLE):
        return _given(VARIABLE, text)
    if (found := shutil.which(PROGRAM)) is not None:
        return Path(found).absolute()
    if (useless := shutil.which(PROGRAM, mode=os.F_OK)) is not None:
        raise HostError(
            f"{useless} is not executable", fix=f"Run `chmod +x {useless}`, or reinstall QEMU."
        )
    raise HostError(f"QEMU is not installed: there is no {PROGRAM} on PATH", fix=_INSTALL)


def _given(field: str, text: str) -> Path:
    if (found := shutil.which(text)) is not None:
        return Path(found).absolute()
    path = Path(text)
    if path.is_dir():
        why = "it is a directory"
    elif path.exists():
        why = "it is not executable"
    elif "/" in text:
        why = "there is no such file"
    else:
        why = "there is none on PATH"
    raise InvalidOptionError(field, text, f"a {PROGRAM} program, and {why}")


async def qemu_version(path: Path, *, cache_dir: Path) -> QemuVersion:
    """Return the version of a QEMU, and make sure that it is one and not too old.

    It is run once and then remembered for as long as the file stays the same.

    Args:
        path: The program.
        cache_dir: Where the version is kept. It need not exist; then nothing is.

    Raises:
        HostError: It cannot be executed, is not a QEMU, or is too old.
    """
    cache = cache_dir / CACHE_NAME
    try:
        found = await trio.to_thread.run_sync(path.stat)
    except OSError as error:
        raise HostError(f"{path} cannot be used: {error.strerror}", fix=_INSTALL) from error
    question = [os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ino]
    line = await trio.to_thread.run_sync(recall, cache, question)
    known = _parsed(line) if isinstance(line, str) else None
    if known is None:
        known = await _asked(path)
        await trio.to_thread.run_sync(remember, cache, question, known.text)
    if known.number < OLDEST:
        oldest = ".".join(map(str, OLDEST[:2]))
        raise HostError(
            f"{path} is QEMU {known}, and boxlite needs {oldest} or newer",
            fix=f"Upgrade it, or give the path of another as RuntimeOptions.qemu or {VARIABLE}.",
        )
    return known


async def _asked(path: Path) -> QemuVersion:
    try:
        answer = await ask([os.fspath(path), "--version"], seconds=VERSION_SECONDS)
    except OSError as error:
        raise HostError(f"{path} cannot be executed: {error.strerror}", fix=_INSTALL) from error
    text = answer.stdout.decode("ascii", "replace")
    if (version := _parsed(text)) is not None:
        return version
    if answer.exit_code is None:
        what = f"did not answer `--version` within {VERSION_SECONDS:g} s and 64 KiB"
    elif answer.exit_code != 0:
        what = f"failed when asked for its `--version`: {answer.last_words or answer.exit_code}"
    else:
        first = "".join(char for char in text.partition("\n")[0] if char.isprintable())
        what = f"is not a QEMU: `--version` says {first[:100]!r}"
    raise HostError(f"{path} {what}", fix=_INSTALL)


def _parsed(text: str) -> QemuVersion | None:
    # Only at the beginning: a program that merely mentions QEMU is not one.
    if (match := _VERSION.match(text)) is None:
        return None
    line = "".join(char for char in match[0] if char.isprintable())[:200]
    return QemuVersion((int(match[1]), int(match[2]), int(match[3] or 0)), line)
