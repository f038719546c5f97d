"""Real images for tests: of Debian and of busybox, in every form that registries have them in.

All of it works for ordinary users. Debian's packages come from its archive, by mmdebstrap;
what is built is cached for a month (:mod:`image_cache`), so a second run needs no network.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import image_cache
import image_layer
import image_layout
from image_cache import cached
from image_layer import EPOCH, LayerTar, net_raw_capability
from image_layout import Layout, run_tool, write_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The user that :func:`app` and :func:`busybox` have, and its ids.
USER: Final = "app"
USER_ID: Final = 1234
#: Where :func:`app` has a copy of ``id`` that runs as root whoever calls it.
SETUID_ID: Final = "usr/local/bin/setuid-id"

_PROGRAMS: Final = ("bin/", "sbin/", "usr/bin/", "usr/sbin/")
_SUITE: Final = "bookworm"
_MIRROR: Final = f"deb http://deb.debian.org/debian {_SUITE} main"
#: What no test reads: most of the size of a minimal Debian.
_EXCLUDED: Final = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"),
    "/usr/lib/*/gconv/*",
)
_PIN: Final = "$1/etc/apt/preferences.d/usrmerge"
#: usrmerge would pull in all of Perl; usr-is-merged does for a system that begins merged.
_WITHOUT_USRMERGE: Final = (
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    f"--setup-hook=printf 'Package: usrmerge\\nPin: release *\\nPin-Priority: -1\\n' >\"{_PIN}\"",
    f'--customize-hook=rm "{_PIN}"',
)
#: Files that mmdebstrap copies from this machine.
_OF_THIS_MACHINE: Final = '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'


def bootstrap_debian(packages: Sequence[str], name: str = "debian-root") -> Path:
    """Return a tar of a Debian that is installed and configured, and holds no device.

    Args:
        packages: What it has beside apt and what is essential.
        name: What the cache calls it.
    """
    options = [
        # The same for root and for others, and nothing is mounted on this machine.
        "--mode=fakechroot",
        "--variant=apt",
        f"--include={','.join(packages)}",
        *_WITHOUT_USRMERGE,
        _OF_THIS_MACHINE,
        "--skip=output/dev",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
    ]

    def build(directory: Path) -> None:
        target = directory / "root.tar"
        environment = {"SOURCE_DATE_EPOCH": str(EPOCH)}
        run_tool("mmdebstrap", *options, _SUITE, target, _MIRROR, environment=environment)

    recipe = "\0".join([*options, _MIRROR, _month()]).encode()
    return cached(name, recipe, build) / "root.tar"


def debian() -> Layout:
    """Return ``debian:bookworm``: minimal, with apt, adduser and Python, one layer, run by root."""

    def build(directory: Path) -> None:
        layout = Layout.create(directory / "image", _SUITE)
        layout.add_layer(_debian_root())
        layout.configure(env=[PATH], cmd=["bash"])

    return Layout(_image("debian", build, _debian_root()), _SUITE)


def app() -> Layout:
    """Return an application on :func:`debian`, whose layer it shares: a user, and every option.

    It runs as :data:`USER` in a directory of that user's, has an entrypoint, arguments and
    variables, and :data:`SETUID_ID`.
    """
    base = debian()

    def build(directory: Path) -> None:
        with LayerTar(directory / "user.tar") as layer, tarfile.open(_debian_root()) as root:

            def read(path: str) -> bytes:
                member = root.extractfile(f"./{path}")
                assert member is not None
                return member.read()

            _add_user(layer, read("etc/passwd").decode(), read("etc/group").decode(), "/bin/bash")
            layer.file(SETUID_ID, read("usr/bin/id"), 0o4755)
            script = b'#!/bin/sh\necho "entered as $(id -un) in $PWD"\nexec "$@"\n'
            layer.file("usr/local/bin/entrypoint", script, 0o755)
        layout = base.derive(directory / "image", "latest")
        layout.add_layer(layer.path)
        layer.path.unlink()
        layout.configure(
            env=["GREETING=hello, world", "EMPTY="],
            entrypoint=["/usr/local/bin/entrypoint"],
            cmd=["printenv", "GREETING"],
            labels={"org.opencontainers.image.title": "An application"},
            user=USER,
            workingdir=f"/home/{USER}",
            stopsignal="SIGINT",
        )

    return Layout(_image("app", build, _debian_root()))


def busybox() -> Layout:
    """Return a small image of three layers with all that a layer can have.

    The first has busybox as ``/bin/sh`` and the rest, the second takes away, replaces and
    hides parts of the first, and the third adds a user and what is rare: capabilities, a
    device, a pipe, long names and names that are not ASCII.
    """
    program = _busybox_program()

    def build(directory: Path) -> None:
        layout = Layout.create(directory / "image")
        for name, fill in (("base", _base), ("changes", _changes), ("user", _user)):
            with LayerTar(directory / f"{name}.tar") as layer:
                fill(layer, program.read_bytes())
            layout.add_layer(layer.path)
            layer.path.unlink()
        layout.configure(
            env=[PATH, "LAYERS=3"],
            entrypoint=["/entrypoint.sh"],
            cmd=["sh"],
            workingdir="/srv/work",
        )

    return Layout(_image("busybox", build, program))


def zstd(image: Layout, directory: Path) -> Layout:
    """Return the image with layers that are compressed by zstd, in a layout that is made."""
    image.copy(f"oci:{directory}:{image.tag}", "--dest-compress-format", "zstd")
    return Layout(directory, image.tag)


def two_platforms(image: Layout, directory: Path) -> Layout:
    """Return an index of the image for amd64 and of another one for arm64, which has a label."""
    other = image.derive(directory / "arm64", image.tag)
    other.configure(architecture="arm64", labels={"platform": "arm64"})
    images = {"linux/arm64": other, "linux/amd64": image}
    return write_index(directory / "index", image.tag, images)


def docker_archive(image: Layout, file: Path, name: str) -> Path:
    """Write what ``docker save`` writes: layers that are not compressed.

    Args:
        image: The image.
        file: The archive to make.
        name: What the image is called in it: ``test/busybox:latest``, before which skopeo puts
            ``docker.io/`` and ``docker save`` would not.
    """
    image.copy(f"docker-archive:{file}:{name}")
    return file


def oci_archive(image: Layout, file: Path) -> Path:
    """Write the image's layout as a tar, the archive to make."""
    image.copy(f"oci-archive:{file}:{image.tag}")
    return file


def _base(layer: LayerTar, program: bytes) -> None:
    for path in ("bin", "dev", "etc", "home", "opt", "proc", "run", "sbin", "srv", "sys"):
        layer.directory(path)
    for path in ("usr", "usr/bin", "usr/sbin", "usr/local", "usr/local/bin", "var", "srv/work"):
        layer.directory(path)
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", program, 0o755)
    # busybox's own su and login insist on it.
    layer.file("bin/su", program, 0o4755)
    # As in the official image, names of one file; the rest are links, as in Alpine's.
    layer.hard_link("bin/sh", "bin/busybox")
    for path in run_tool(_busybox_program(), "--list-full").split():
        if path not in ("bin/busybox", "bin/sh", "bin/su") and path.startswith(_PROGRAMS):
            layer.symlink(path, "/bin/busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\n")
    layer.file("etc/shadow", b"root:*:20000:0:99999:7:::\n", 0o640, (0, 42))
    layer.symlink("var/run", "/run")
    layer.file("opt/removed", b"of the first layer\n")
    layer.directory("opt/removed-tree")
    layer.file("opt/removed-tree/file", b"of the first layer\n")
    layer.directory("opt/opaque")
    layer.file("opt/opaque/old", b"of the first layer\n")
    layer.file("opt/changed", b"of the first layer\n")
    layer.file("opt/file-then-directory", b"of the first layer\n")
    layer.directory("opt/directory-then-file")
    layer.file("opt/directory-then-file/file", b"of the first layer\n")
    layer.file("opt/one", b"two names\n")
    layer.hard_link("opt/two", "opt/one")


def _changes(layer: LayerTar, program: bytes) -> None:
    del program
    layer.directory("opt")
    layer.whiteout("opt/removed")
    layer.whiteout("opt/removed-tree")
    layer.directory("opt/opaque", 0o750)
    layer.opaque("opt/opaque")
    layer.file("opt/opaque/new", b"of the second layer\n")
    layer.file("opt/changed", b"of the second layer\n", 0o600)
    layer.directory("opt/file-then-directory")
    layer.file("opt/file-then-directory/file", b"of the second layer\n")
    layer.whiteout("opt/directory-then-file")
    layer.file("opt/directory-then-file", b"of the second layer\n")
    # One of two names goes; the other keeps the file.
    layer.whiteout("opt/one")


def _user(layer: LayerTar, program: bytes) -> None:
    _add_user(layer, "root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n", "/bin/sh")
    script = b'#!/bin/sh\nexec "$@"\n'
    layer.file("entrypoint.sh", script, 0o755)
    capability = {"security.capability": net_raw_capability()}
    layer.file("usr/local/bin/ping", program, 0o755, attributes=capability)
    layer.directory("opt/rare")
    layer.file("opt/rare/attribute", b"", attributes={"user.comment": b"kept"})
    layer.character_device("opt/rare/null", 1, 3)
    layer.fifo("opt/rare/pipe", 0o620)
    layer.file("opt/rare/" + "n" * 200, b"a long name\n")
    layer.symlink("opt/rare/long-link", "/opt/rare/" + "n" * 200)
    layer.file("opt/rare/Größe ☃", b"not ASCII\n")
    layer.symlink("opt/rare/dangling", "/nowhere")
    layer.file("opt/rare/large-ids", b"", 0o640, (4_000_000, 4_000_001))
    layer.directory("opt/rare/set-gid", 0o2775, (0, 50))


def _add_user(layer: LayerTar, passwd: str, group: str, shell: str) -> None:
    """Add :data:`USER` to what a lower layer has, as adduser would."""
    entry = f"{USER}:x:{USER_ID}:{USER_ID}:An application:/home/{USER}:{shell}\n"
    layer.file("etc/passwd", (passwd + entry).encode())
    layer.file("etc/group", f"{group}{USER}:x:{USER_ID}:\n".encode())
    layer.directory(f"home/{USER}", 0o750, (USER_ID, USER_ID))
    layer.file(f"home/{USER}/.profile", b"umask 027\n", 0o640, (USER_ID, USER_ID))


def _debian_root() -> Path:
    return bootstrap_debian(["adduser", "python3-minimal"])


def _busybox_program() -> Path:
    found = shutil.which("busybox")
    assert found is not None, "busybox is not installed"
    return Path(found).resolve()


def _image(name: str, build: Callable[[Path], None], base: Path) -> Path:
    """Return the layout that is cached for this very code and what it starts from."""
    modules = (image_layer, image_layout, image_cache)
    sources = [Path(module.__file__).read_bytes() for module in modules if module.__file__]
    found = base.stat()
    start = f"{base} {found.st_size} {found.st_mtime_ns}".encode()
    parts = [hashlib.sha256(part).digest() for part in (*sources, Path(__file__).read_bytes())]
    return cached(f"image-{name}", b"".join([start, *parts]), build) / "image"


def _month() -> str:
    """Return the month: packages are as old as that at most."""
    return datetime.now(UTC).strftime("%Y-%m")
