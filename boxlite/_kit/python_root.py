"""The running interpreter as files for the guest: program, library, dependencies.

Modules are compiled here and packed without their sources: the guest starts
quicker and the archive is half the size. A traceback in the guest names the
file and line and has no source text for the standard library.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import marshal
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from boxlite._errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Where the guest has its interpreter's library: the landmark below /usr.
STDLIB: Final = f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
#: Where the agent and what it depends on lie: not on the path of the box's own Python.
AGENT_ROOT: Final = "/usr/lib/boxlite"
#: The agent's dependencies; theirs are followed.
AGENT_DISTRIBUTIONS: Final = ("grpclib", "betterproto2")

# Nothing in a box without a network and a screen has a use for these.
_LEFT_OUT: Final = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "turtle.py", "turtledemo", "ensurepip", "venv"),
        *("lib2to3", "pydoc_data", "distutils", "curses", "site-packages", "dist-packages"),
        *("lib-dynload", "__pycache__", "__phello__", "__hello__.py", "antigravity.py"),
    )
)
_EXTENSIONS_LEFT_OUT: Final = re.compile(
    r"_?(?:test|xx|ctypes_test|tkinter|curses|gdbm|dbm|ssl|hashlib|ossaudiodev|nis|readline)"
)
# With these in the interpreter, hashlib does without OpenSSL's 5 MB.
_BUILTIN_HASHES: Final = (
    *("_md5", "_sha1", "_sha3", "_blake2"),
    "_sha512" if sys.version_info < (3, 12) else "_sha2",
)


def stdlib_sources() -> Iterator[tuple[str, Path]]:
    """Yield the guest path and the host file of every standard library module."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for directory, names, files in os.walk(root):
        here = Path(directory)
        names[:] = sorted(
            name for name in names if name not in _LEFT_OUT and not name.startswith("config-")
        )
        for name in sorted(files):
            if name.endswith(".py") and name not in _LEFT_OUT:
                path = here / name
                yield f"{STDLIB}/{path.relative_to(root)}", path


def stdlib_extensions() -> Iterator[tuple[str, Path]]:
    """Yield the guest path and the host file of every extension module that is packed."""
    directory = Path(sysconfig.get_config_var("DESTSHARED"))
    names = {path.name: path for path in sorted(directory.glob("*.so"))}
    has_hashes = all(
        name in sys.builtin_module_names or any(each.startswith(f"{name}.") for each in names)
        for name in _BUILTIN_HASHES
    )
    for name, path in names.items():
        wanted = not _EXTENSIONS_LEFT_OUT.match(name)
        if wanted or (name.startswith("_hashlib.") and not has_hashes):
            yield f"{STDLIB}/lib-dynload/{name}", path


def interpreter() -> Path:
    """Return the real program behind this interpreter, past any virtual environment.

    Raises:
        HostError: It cannot be found: an embedded or frozen interpreter.
    """
    base = getattr(sys, "_base_executable", None) or sys.executable
    path = Path(base).resolve() if base else None
    if path is None or not path.is_file():
        raise HostError(
            f"the Python interpreter {base!r} is no file that could be given to a guest",
            fix="Run boxlite under an ordinary CPython.",
        )
    return path


def distribution_files() -> Iterator[tuple[str, Path]]:
    """Yield the guest path and the host file of all that the agent depends on."""
    for distribution in _closure(AGENT_DISTRIBUTIONS):
        for file in sorted(distribution.files or (), key=str):
            parts = Path(file).parts
            if ".." in parts or "__pycache__" in parts or "tests" in parts:
                continue
            metadata = parts[0].endswith(".dist-info")
            if (metadata and parts[-1] == "METADATA") or (
                not metadata and Path(file).suffix in {".py", ".so"}
            ):
                yield f"{AGENT_ROOT}/{file}", Path(str(distribution.locate_file(file)))


def _closure(names: Iterable[str]) -> list[importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or version; pip has seen to the rest
        found[name] = distribution
        for requirement in distribution.requires or ():
            needed, _, marker = requirement.partition(";")
            if "extra" not in marker:
                waiting.append(re.split(r"[^\w.-]", needed.strip(), maxsplit=1)[0])
    return [found[name] for name in sorted(found)]


def compiled(source: Path, guest_path: str) -> bytes:
    """Return a module as the contents of a ``.pyc`` that stands without its source.

    The header is that of an unchecked hash-based file (PEP 552), so the result
    does not depend on times.
    """
    code = compile(source.read_bytes(), guest_path, "exec", dont_inherit=True, optimize=0)
    flags = (0b01).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + flags + bytes(8) + marshal.dumps(code)


def shared_libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """Return the host files of all shared libraries that binaries need, by guest path.

    The loader itself keeps its path. The rest goes where this loader looks when a
    binary's own search path leads nowhere: wherever the C library is.

    Raises:
        HostError: A library is missing on the host, or there is no ``ldd``.
    """
    loaders: dict[str, Path] = {}
    libraries: dict[str, Path] = {}
    for line in _ldd(binaries).splitlines():
        if match := re.match(r"\s+(\S+) => (\S+) \(", line):
            libraries[Path(match[1]).name] = Path(match[2])
        elif match := re.match(r"\s+(/\S+) \(", line):
            loaders[match[1]] = Path(match[1]).resolve()
        elif match := re.match(r"\s+(\S+) => not found", line):
            raise HostError(
                f"the shared library {match[1]} of this Python is not there",
                fix="Repair the installation of Python or of the package that needs it.",
            )
    directory = libraries.get("libc.so.6", Path("/lib/libc")).parent
    # No binary names it: glibc opens it by itself when a thread is ended.
    unwinder = directory / "libgcc_s.so.1"
    if unwinder.exists():
        libraries[unwinder.name] = unwinder
    return loaders | {f"{directory}/{name}": path.resolve() for name, path in libraries.items()}


def _ldd(binaries: Iterable[Path]) -> str:
    try:
        done = subprocess.run(
            ["ldd", *map(str, binaries)],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            # It fails for a binary that is static, which is no failure here.
            check=False,
        )
    except FileNotFoundError:
        raise HostError("the program ldd is not there", fix="apt-get install libc-bin") from None
    return done.stdout
