"""Imports only point downwards, and asyncio stays where it belongs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import boxlite

PACKAGE = Path(boxlite.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_generated" not in path.parts)
#: What runs in other processes, and what it may import from the package.
APART = {
    "shim": {"_wire"},
    "guest": {"_wire", "_bulk", "_tree", "_rpc._generated"},
}


def layers() -> list[set[str]]:
    """Read the layers, top to bottom, from the comment in the package's ``__init__``."""
    text = (PACKAGE / "__init__.py").read_text()
    comment = text[text.index("# The layers") : text.index("# shim and guest")]
    rows = [line[1:].split("  ") for line in comment.splitlines() if line.startswith("#   ")]
    return [set(re.findall(r"\w+", next(part for part in row if part.strip()))) for row in rows]


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, relative to the package."""
    found: set[str] = set()
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["boxlite", *parts[: len(parts) - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("boxlite.") for name in names if name.startswith("boxlite.")}
    return found


def rank(name: str) -> int | None:
    """Return the layer of a module by its first part, or None for a public name."""
    top = name.split(".")[0]
    for number, layer in enumerate(layers()):
        if top in layer:
            return number
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    """A module's own package and strictly lower layers are what it may know."""
    top = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if top == "__init__":
        return
    if top in APART:
        allowed = APART[top] | {top}
        for name in imports(path):
            assert any(name == each or name.startswith(f"{each}.") for each in allowed), name
        return
    own = rank(top)
    assert own is not None, f"{top} is not in the layers of boxlite/__init__.py"
    for name in imports(path):
        target = name.split(".")[0]
        if target == top:
            continue
        level = rank(name)
        assert level is not None or top in {"cli", "__main__"}, f"{top} imports {name}"
        assert level is None or level > own or (top, target) == ("__main__", "cli"), (
            f"{top} imports {name}, which is not below it"
        )


def test_asyncio_is_confined() -> None:
    """Only the RPC package and the guest agent may know asyncio, trio_asyncio or grpclib."""
    offenders = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] not in {"_rpc", "guest"}
        and re.search(
            r"^\s*(import|from) (asyncio|trio_asyncio|grpclib)\b", path.read_text(), re.MULTILINE
        )
    ]
    assert offenders == []


def test_importing_boxlite_does_not_import_asyncio_bridges() -> None:
    """trio_asyncio changes asyncio for the whole process, so it waits for the first box."""
    program = "import sys, boxlite; print(*sorted(set(sys.modules) & {'trio_asyncio', 'grpclib'}))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)

    assert done.stdout.strip() == b""


def test_public_names_say_that_they_are_public() -> None:
    """A traceback names what a user can import."""
    for name, value in vars(boxlite).items():
        if isinstance(value, type) and not name.startswith("_"):
            assert value.__module__ == "boxlite", name


def test_modules_are_short() -> None:
    """One idea each: 300 lines, unless the header gives a reason."""
    for path in MODULES:
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path.relative_to(PACKAGE)} has {lines} lines"
