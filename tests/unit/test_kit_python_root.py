"""The guest's Python runs from what the archive holds, and from nothing of the host."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import boxlite
from boxlite._kit.cpio import read_cpio

SYSTEM_PYTHON = "/usr/bin/python3"

# Imports what a program may expect of a Python, and says where all of it came from.
PROBE = """
import ast, asyncio, bz2, concurrent.futures, csv, ctypes, dataclasses, decimal, email, hashlib
import http.client, inspect, json, logging, lzma, multiprocessing, pathlib, pickle, platform
import random, secrets, select, socket, sqlite3, statistics, subprocess, sys, tempfile, threading
import typing, unittest, urllib.request, uuid, xml.etree.ElementTree, zipfile, zlib, zoneinfo
import site
for name in hashlib.algorithms_guaranteed:
    hashlib.new(name)
sqlite3.connect(":memory:").execute("select 1")
zlib.decompress(zlib.compress(lzma.decompress(lzma.compress(bz2.decompress(bz2.compress(b"x"))))))
xml.etree.ElementTree.fromstring("<a/>")
# glibc opens this one when a program ends while a thread runs on, or aborts it.
ctypes.CDLL("libgcc_s.so.1")
sys.path.insert(0, sys.argv[1])
sys.modules["ssl"] = None
import grpclib.server, betterproto2, boxlite.guest
mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", 0)}
print(json.dumps({"prefix": sys.prefix, "files": sorted(files), "mapped": sorted(mapped)}))
"""


def minor_version(python: str) -> str:
    """Return the version of an interpreter, such as ``"3.11"``, or nothing if there is none."""
    if not Path(python).exists():
        return ""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", script], capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module", params=["this one", "the system's"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that an interpreter makes of itself, unpacked."""
    python = sys.executable if request.param == "this one" else SYSTEM_PYTHON
    # Another version could not load the compiled dependencies of this one.
    if minor_version(python) != minor_version(sys.executable):
        pytest.skip(f"{python} is not of the version that the tests run under")
    modules = tmp_path_factory.mktemp("kernel") / "lib" / "modules" / "6.1.0-1"
    modules.mkdir(parents=True)
    archive = tmp_path_factory.mktemp("kit") / "archive"
    packages = [Path(boxlite.__file__).parent.parent, *map(Path, sys.path)]
    subprocess.run(
        [python, "-P", "-m", "boxlite._kit.build", str(modules), str(archive)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                str(path)
                for path in packages
                if path.name == "site-packages" or path == packages[0]
            ),
        },
        check=True,
    )
    root = tmp_path_factory.mktemp("root")
    for name, mode, data in read_cpio(archive.read_bytes()):
        path = root / name
        if stat.S_ISDIR(mode):
            path.mkdir()
        elif stat.S_ISREG(mode):
            path.write_bytes(data)
            path.chmod(stat.S_IMODE(mode))
    return root


def run_inside(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the unpacked interpreter with the unpacked loader and libraries."""
    (libc,) = root.glob("lib*/**/libc.so.6")
    (loader,) = root.glob("lib*/ld-linux*")
    program = root / "usr" / "bin" / "python3"
    return subprocess.run(
        [loader, "--library-path", libc.parent, program, "-I", *arguments],
        capture_output=True,
        text=True,
        env={},
        timeout=60,
    )


def test_the_library_is_whole(root: Path) -> None:
    """What a program may import is there, with every library that it loads."""
    done = run_inside(root, "-c", PROBE, str(root / "usr" / "lib" / "boxlite"))

    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["prefix"] == str(root / "usr")
    # Frozen modules say where their source would be: in the prefix as well.
    assert [name for name in found["files"] if not name.startswith(f"{root}/")] == []
    assert [
        name for name in found["mapped"] if ".so" in name and not name.startswith(f"{root}/")
    ] == []


def test_the_archive_has_no_tls(root: Path) -> None:
    """OpenSSL alone would be a fifth of it."""
    assert [path.name for path in root.rglob("libcrypto*")] == []
    done = run_inside(root, "-c", "import ssl")
    assert "No module named '_ssl'" in done.stderr
