"""A root is what ``umoci unpack`` makes of the same image: all of it, attribute by attribute.

umoci is the reference implementation of how layers are applied. It needs root: it makes
devices, and files of any owner.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import attrs
import pytest
from image_trees import Tree, differences, tree_of_directory, tree_of_squashfs
from layers import (
    Compression,
    Part,
    device,
    directory,
    fifo,
    file,
    hard,
    layer,
    make_image,
    opaque,
    symlink,
    white,
)

from boxlite._images.flatten import build_root

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not os.environ.get("BOXLITE_TESTS_REQUIRE_VM")
    and (shutil.which("umoci") is None or os.geteuid() != 0),
    reason="there is no umoci, or we are not root",
)

ROOT = directory(b"./", 0o755)
BASE = [
    ROOT,
    directory(b"etc"),
    file(b"etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    file(b"etc/shadow", b"root:*\n", 0o640, gid=42),
    directory(b"usr", mtime=1_500_000_000),
    directory(b"usr/bin"),
    file(b"usr/bin/sh", b"#!" * 5000, 0o755),
    symlink(b"bin", b"usr/bin"),
    directory(b"opt"),
    directory(b"opt/a"),
    directory(b"opt/a/deep"),
    file(b"opt/a/deep/one", b"1"),
    file(b"opt/a/two", b"2"),
    directory(b"tmp", 0o1777),
]

LONG = b"/".join([b"d" * 80] * 4)
DEEP = b"/".join([b"d" * 200] * 12)

#: Each image: its layers, and the directories that umoci gives the time of the moment.
#: We do not: those that no layer has get the time 0, and the others keep the one that they
#: have in a layer. They are the ones that are made because something is in them, and the one
#: that the first of these is in; and directories of a layer that its own whiteout of one
#: further up clears of what lower layers have.
IMAGES: dict[str, tuple[Sequence[bytes], Sequence[bytes]]] = {
    "one layer": ([layer(*BASE)], []),
    "no entry for the root": ([layer(*BASE[1:])], []),
    "nothing": ([layer()], []),
    "attributes of the root": (
        [layer(ROOT), layer(directory(b".", 0o1711, uid=5, gid=6, mtime=77))],
        [],
    ),
    "whiteouts": (
        [
            layer(*BASE),
            layer(white(b"etc/shadow"), white(b"opt/a"), white(b"never/was"), white(b"etc/never")),
            layer(file(b"etc/shadow", b"again"), directory(b"opt/a", 0o700)),
        ],
        [],
    ),
    "opaque before and after": (
        [
            layer(*BASE),
            layer(
                directory(b"opt/a", 0o700),
                opaque(b"opt/a"),
                file(b"opt/a/new", b"n"),
                directory(b"usr"),
                directory(b"usr/bin"),
                file(b"usr/bin/ash", b"ash"),
                opaque(b"usr"),
            ),
        ],
        [b"usr/bin"],
    ),
    "opaque root": ([layer(*BASE), layer(opaque(), file(b"only", b"o"))], []),
    "opaque directory that nothing else mentions": ([layer(*BASE), layer(opaque(b"opt/a"))], []),
    "whiteout and the same again": (
        [
            layer(*BASE),
            layer(
                file(b"etc/passwd", b"before"),
                white(b"etc/passwd"),
                white(b"etc/shadow"),
                file(b"etc/shadow", b"after"),
                directory(b"opt/a"),
                file(b"opt/a/mine", b"m"),
                white(b"opt/a"),
                white(b"usr"),
                directory(b"usr"),
                file(b"usr/back", b"b"),
            ),
        ],
        [b"opt/a"],
    ),
    "whiteout of one of two names": (
        [
            layer(*BASE, hard(b"etc/link", b"etc/passwd"), hard(b"tmp/link", b"bin")),
            layer(white(b"etc/passwd"), white(b"bin")),
        ],
        [],
    ),
    "links to lower layers": (
        [
            layer(*BASE, fifo(b"pipe")),
            layer(hard(b"etc/sh", b"bin/sh"), hard(b"a", b"/etc/passwd"), hard(b"b", b"../bin")),
            layer(hard(b"c", b"a"), file(b"etc/passwd", b"new"), hard(b"p", b"pipe")),
        ],
        [],
    ),
    "one kind over another": (
        [
            layer(*BASE, symlink(b"s", b"etc"), directory(b"d"), file(b"d/f")),
            layer(
                file(b"opt/a", b"was a directory"),
                directory(b"bin"),
                file(b"bin/x"),
                directory(b"etc/passwd"),
                file(b"etc/passwd/in", b"i"),
                symlink(b"d", b"etc"),
            ),
            layer(directory(b"d"), file(b"d/g"), directory(b"s", 0o700), fifo(b"opt/a")),
            layer(symlink(b"d", b"/usr"), file(b"d/through", b"t")),
        ],
        [],
    ),
    "the same twice in one layer": (
        [
            layer(
                *BASE,
                file(b"f", b"one"),
                file(b"f", b"two", 0o600),
                directory(b"f"),
                file(b"f/in"),
                symlink(b"f", b"x"),
                file(b"./f", b"three"),
                directory(b"opt/a", 0o711, mtime=4),
                file(b"opt/a/two", b"more"),
            )
        ],
        [],
    ),
    "through links": (
        [
            layer(
                *BASE,
                symlink(b"up", b"../../../../etc"),
                symlink(b"abs", b"/opt/a/"),
                symlink(b"chain", b"abs/deep/../../../up"),
                symlink(b"dangling", b"made/on/the/way"),
            ),
            layer(
                file(b"up/in-etc", b"1"),
                file(b"abs/deep/in-deep", b"2"),
                file(b"chain/in-etc-too", b"3"),
                file(b"dangling/x", b"4"),
                file(b"bin/y", b"5"),
                white(b"bin/sh"),
                opaque(b"abs/deep"),
            ),
        ],
        [b"made", b"made/on", b"made/on/the", b"made/on/the/way", b"."],
    ),
    "parents that no layer has": (
        [
            layer(ROOT, directory(b"g", 0o2775, gid=50)),
            layer(file(b"x/y/z/f"), file(b"g/h/i/f"), white(b"nowhere/at/all")),
        ],
        [b".", b"x", b"x/y", b"x/y/z", b"g", b"g/h", b"g/h/i"],
    ),
    "names": (
        [
            layer(
                *BASE,
                file(b"n" * 255, b"l"),
                directory(LONG.partition(b"/")[0]),
                file(LONG + b"/file", b"long"),
                file(DEEP + b"/file", b"deep"),
                symlink(b"long-target", b"t/" * 400),
                hard(b"long-link", LONG + b"/file"),
                file(b"not-utf8-\xff\xfe", b"\xff"),
                file(b"line\nfeed\ttab \\x2d 'quote\" ", b"odd"),
                file("grüße-中".encode(), b"utf8"),
                file(b"/absolute/../etc/./clean//ed", b"c"),
                file(b"../../outside", b"o"),
                file(b".wh", b"no whiteout"),
                file(b"-dash"),
            )
        ],
        [
            *(b".", b"etc", b"etc/clean"),
            *(LONG[: 81 * n + 80] for n in range(4)),
            *(DEEP[: 201 * n + 200] for n in range(12)),
        ],
    ),
    "long names as GNU has them": (
        [
            layer(
                ROOT,
                directory(LONG[:80]),
                directory(LONG[:161]),
                directory(LONG[:242]),
                directory(LONG),
                file(LONG + b"/file", b"long", uid=3_000_000, gid=4_000_000_000),
                symlink(b"l", LONG * 3),
                hard(b"h", LONG + b"/file"),
                format=tarfile.GNU_FORMAT,
            )
        ],
        [],
    ),
    "ustar": ([layer(*BASE, format=tarfile.USTAR_FORMAT)], []),
    "attributes": (
        [
            layer(
                *BASE,
                file(b"setuid", b"s", 0o4755),
                file(b"setgid", b"s", 0o2755, uid=1000, gid=1000),
                directory(b"both", 0o7777, uid=65534, gid=65534),
                file(b"none", b"s", 0),
                file(b"high", b"s", uid=2_097_152, gid=4_294_967_294),
                file(b"fraction", b"s", mtime=1_600_000_000.75),
                file(b"epoch", b"s", mtime=0),
                file(b"late", b"s", mtime=4_000_000_000),
                symlink(b"owned", b"x", uid=7, gid=8, mtime=9),
                file(
                    b"capable",
                    b"s",
                    xattrs={
                        b"security.capability": bytes.fromhex(
                            "0100000200200000000000000000000000000000"
                        ),
                        b"user.binary": b"a\0b=c\n\xff",
                        b"user.equals": b"x=y==",
                        b"user.empty": b"",
                        b"trusted.t": b"1",
                    },
                ),
                directory(b"xdir", xattrs={b"user.d": b"v"}),
            ),
            # Attributes are replaced, not added to; those of a directory that is only gone
            # through stay.
            layer(directory(b"both", 0o700), file(b"xdir/in"), file(b"capable", b"incapable")),
        ],
        [],
    ),
    "devices": (
        [
            layer(
                ROOT,
                directory(b"dev"),
                device(b"dev/null", tarfile.CHRTYPE, 1, 3, 0o666),
                device(b"dev/sda", tarfile.BLKTYPE, 8, 0, 0o660),
                device(b"dev/high", tarfile.BLKTYPE, 259, 1_048_575),
                fifo(b"dev/initctl", uid=3, gid=4),
                hard(b"dev/zero", b"dev/null"),
            ),
            layer(file(b"dev/sda", b"a file now"), device(b"etc", tarfile.CHRTYPE, 5, 1)),
        ],
        [],
    ),
    "AUFS's own files": (
        [layer(*BASE), layer(file(b".wh..wh.aufs"), file(b".wh..wh.orph", b""), file(b"x"))],
        [],
    ),
    "eight layers": (
        [
            layer(*BASE),
            *(
                layer(
                    file(b"etc/passwd", b"%d" % n),
                    file(b"opt/a/%d" % n, b"%d" % n),
                    white(b"opt/a/%d" % (n - 2)),
                    directory(b"opt/a", mtime=n),
                )
                for n in range(7)
            ),
        ],
        [],
    ),
    "data": (
        [
            layer(
                ROOT,
                file(b"empty", b""),
                file(b"block", b"b" * 512),
                file(b"more", b"m" * 513),
                file(b"zeros", bytes(1 << 20)),
                file(b"big", bytes(range(256)) * 8000),
                file(b"fragment", b"f" * 131_073),
            )
        ],
        [],
    ),
}


def unpack_with_umoci(layout: Path, rootfs: Path) -> Tree:
    """Return what umoci makes of an image."""
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(rootfs)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return tree_of_directory(rootfs)


def without_times(tree: Tree, names: Sequence[bytes]) -> Tree:
    """Return a tree without the times of some directories."""
    return {
        name: attrs.evolve(entry, mtime=-1) if name in names else entry
        for name, entry in tree.items()
    }


@pytest.mark.parametrize("name", IMAGES)
async def test_a_root_is_what_umoci_unpacks(name: str, tmp_path: Path) -> None:
    """Boxes see the files that the same image has everywhere else."""
    layers, implicit = IMAGES[name]
    image = make_image(tmp_path / "layout", layers)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    await build_root(
        image=name,
        layers=image.layers,
        diff_ids=image.diff_ids,
        scratch=scratch,
        out=tmp_path / "root",
    )

    expected = unpack_with_umoci(tmp_path / "layout", tmp_path / "rootfs")
    actual = tree_of_squashfs(tmp_path / "root", tmp_path)
    assert differences(without_times(expected, implicit), without_times(actual, implicit)) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", ["zstd", "none", "gzip"]])
async def test_how_layers_are_compressed_makes_no_difference(
    compression: Compression | list[Compression], tmp_path: Path
) -> None:
    """An image that was compressed again is the same image: also its bytes."""
    parts: list[list[Part]] = [BASE, [white(b"etc/shadow")], [file(b"x", b"x" * 100_000)]]
    layers = [layer(*each) for each in parts]
    for place, how in (("plain", "none"), ("other", compression)):
        image = make_image(tmp_path / place, layers, how)
        await build_root(
            image="x",
            layers=image.layers,
            diff_ids=image.diff_ids,
            scratch=tmp_path,
            out=tmp_path / f"{place}.squashfs",
        )

    assert (tmp_path / "plain.squashfs").read_bytes() == (tmp_path / "other.squashfs").read_bytes()


async def test_files_with_holes_are_what_umoci_unpacks(tmp_path: Path) -> None:
    """GNU tar writes them in four ways; umoci reads those that are pax."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as out:
        for place in (0, 200_000, 1_000_000, 5_000_000):
            out.seek(place)
            out.write(b"data" * 3000)
        out.truncate(6_000_000)
    os.utime(sparse, (5, 5))
    layers = {}
    for how in ("0.0", "0.1", "1.0", "gnu"):
        style = ["--format=gnu"] if how == "gnu" else ["--format=pax", f"--sparse-version={how}"]
        layers[how] = subprocess.run(
            ["tar", "-c", "-S", *style, "--numeric-owner", "-C", str(tmp_path), "sparse"],
            capture_output=True,
            check=True,
        ).stdout
    for how, data in layers.items():
        image = make_image(tmp_path / how, [layer(ROOT), data])
        await build_root(
            image=how,
            layers=image.layers,
            diff_ids=image.diff_ids,
            scratch=tmp_path,
            out=tmp_path / f"{how}.squashfs",
        )
    expected = unpack_with_umoci(tmp_path / "1.0", tmp_path / "rootfs")

    for how in layers:
        actual = tree_of_squashfs(tmp_path / f"{how}.squashfs", tmp_path)
        assert differences(expected, actual) == []
