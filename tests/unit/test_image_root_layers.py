"""Layers applied to a root: what they may not do to it."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from layers import (
    Part,
    device,
    directory,
    fifo,
    file,
    hard,
    layer,
    opaque,
    symlink,
    white,
)

from boxlite._images import flat_tar
from boxlite._images.layer_limits import LayerError, Limits
from boxlite._images.root_layers import RootLayers
from boxlite._images.root_tree import Directory, File

if TYPE_CHECKING:
    from collections.abc import Sequence


def apply(*layers: Sequence[Part], limits: Limits | None = None) -> Directory:
    """Return the tree that layers make."""
    tree = RootLayers(limits or Limits())
    for parts in layers:
        fd = os.memfd_create("layer")
        try:
            os.write(fd, layer(*parts))
            tree.apply_file(fd)
        finally:
            os.close(fd)
    return tree.root


REFUSED: dict[str, list[list[Part]]] = {
    "the root as a link": [[symlink(b".", b"/etc")]],
    "the root as a file": [[file(b"a/..", b"x")]],
    "a file on the way": [[file(b"a")], [file(b"a/b")]],
    "a device on the way": [[device(b"a", tarfile.CHRTYPE, 1, 3)], [file(b"a/b/c")]],
    "a loop": [[symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")]],
    "a link to itself": [[symlink(b"a", b"a/a/a"), file(b"a/x")]],
    "a hard link to nothing": [[hard(b"a", b"b")]],
    "a hard link to itself": [[file(b"a"), hard(b"a", b"a")]],
    "a hard link out": [[hard(b"a", b"../../../../etc/passwd")]],
    "a hard link through a link out": [[symlink(b"s", b"/../../etc"), hard(b"a", b"s/passwd")]],
    "a hard link to a directory": [[directory(b"d"), hard(b"a", b"d")]],
    "a hard link to the root": [[hard(b"a", b"..")]],
    "a hard link to what is hidden": [[file(b"f")], [white(b"f"), hard(b"a", b"f")]],
    "a whiteout of no name": [[file(b"f")], [file(b".wh.")]],
    "a whiteout of the directory it is in": [[file(b"d/f")], [file(b"d/.wh..")]],
    "a whiteout of the directory above": [[file(b"d/f")], [file(b"d/.wh...")]],
    "a name that is too long": [[file(b"n" * 256)]],
    "a directory with such a name": [[file(b"n" * 256 + b"/f")]],
    "such a name by way of a link": [[symlink(b"l", b"n" * 256), file(b"l/f")]],
    "a link to nothing": [[symlink(b"l", b"")]],
    "a path too long by way of links": [
        [symlink(b"l", b"/".join([b"d" * 250] * 15)), file(b"l/" + b"/".join([b"e" * 250] * 3))]
    ],
    "a way too long by way of links": [
        [
            symlink(b"a", b"/".join([b"."] * 2000)),
            *(symlink(b"b%d" % n, b"a/" * 900) for n in range(9)),
            file(b"/".join(b"b%d" % n for n in range(9)) + b"/f"),
        ]
    ],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_root_can_have_is_refused(name: str) -> None:
    """The member that is at fault is named."""
    with pytest.raises(LayerError) as caught:
        apply(*REFUSED[name])

    assert caught.value.member
    assert caught.value.problem


def test_nothing_leads_out_of_the_root() -> None:
    """Whatever is above the root is the root, in names, in links, and through them."""
    root = apply(
        [directory(b"in"), symlink(b"in/up", b"../../../.."), symlink(b"abs", b"//..//")],
        [file(b"/one"), file(b"../../two"), file(b"in/up/three"), file(b"abs/in/../four")],
    )

    assert sorted(root.children) == [b"abs", b"four", b"in", b"one", b"three", b"two"]
    assert sorted(root.children[b"in"].children) == [b"up"]  # type: ignore[attr-defined]


def test_aufs_directories_are_left_out() -> None:
    """They have what AUFS needed for hard links, and containerd leaves them out too."""
    root = apply([directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/12.34"), file(b"f")])

    assert sorted(root.children) == [b"f"]


def test_attributes_that_a_root_cannot_have_are_left_out() -> None:
    """ACLs are not in squashfs; overlayfs would take its own attributes for orders."""
    kept = {b"user.a": b"1", b"trusted.b": b"2", b"security.capability": b"3"}
    dropped = {
        b"system.posix_acl_access": b"4",
        b"security.selinux": b"5",
        b"trusted.overlay.redirect": b"/etc",
        b"trusted.overlay.opaque": b"y",
        b"user." + b"n" * 251: b"6",
        b"other": b"7",
    }
    root = apply([file(b"f", xattrs=kept | dropped), symlink(b"l", b"f", xattrs=kept)])

    assert dict(root.children[b"f"].xattrs) == kept
    assert sorted(dict(root.children[b"l"].xattrs)) == [b"security.capability", b"trusted.b"]


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(entries=5), "more than 5 entries"),
        (Limits(image_bytes=100), "more than 100 bytes of files"),
        (Limits(metadata_bytes=20), "more than 20 bytes of names"),
        (Limits(path_bytes=3), "is too long"),
    ],
)
def test_limits_hold_for_the_image(limits: Limits, problem: str) -> None:
    """They count over all layers, also what a later layer removes."""
    one = [file(b"name%d" % number, b"x" * 30) for number in range(4)]

    with pytest.raises(LayerError, match=problem):
        apply(one, [opaque(), *one], limits=limits)


def test_many_entries_take_little_memory() -> None:
    """A root of a million files must fit."""
    parts = [file(b"directory/%06d" % number, b"") for number in range(4_000)]
    data = layer(*parts, format=tarfile.USTAR_FORMAT)
    fd = os.memfd_create("layer")
    tree = RootLayers(Limits())
    try:
        os.write(fd, data)
        tracemalloc.start()
        try:
            tree.apply_file(fd)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    finally:
        os.close(fd)

    assert held / len(parts) < 450


def test_a_deep_tree_is_walked_without_recursion() -> None:
    """As deep as a path can be, and whiteouts go down there too."""
    deep = b"/".join([b"d"] * 2000)
    root = apply([file(deep)], [file(deep + b"2"), white(b"d")])
    parts = list(flat_tar.FlatTar(root).parts())

    assert len([part for part in parts if isinstance(part, bytes)]) > 2000


def test_replaced_files_lose_their_other_names() -> None:
    """A hard link of a lower layer keeps the old data when one of its names is replaced."""
    root = apply([file(b"a", b"old"), hard(b"b", b"a"), fifo(b"p")], [file(b"a", b"newer")])
    a, b = root.children[b"a"], root.children[b"b"]

    assert isinstance(a, File)
    assert isinstance(b, File)
    assert (a.size, a.layer, b.size, b.layer) == (5, 1, 3, 0)
