"""Stacks of layers: in memory they become what they become on a disk; any bytes end well."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from hypothesis import given, settings, strategies as st
from image_trees import Tree, differences, tree_of_directory, tree_of_tar
from layers import Part, directory, file, hard, layer, opaque, symlink, white

from boxlite._images.flat_tar import FlatTar, Span, Zeros
from boxlite._images.layer_extended import parse_records
from boxlite._images.layer_limits import Budget, LayerError, Limits
from boxlite._images.layer_tar import LayerReader
from boxlite._images.root_layers import RootLayers
from boxlite._images.root_tree import Directory, Symlink, clean, follow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OWNER = {"uid": os.getuid(), "gid": os.getgid()}

component = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(component, min_size=1, max_size=3).map(b"/".join)
modes = st.sampled_from([0o755, 0o700, 0o4711])
members = st.one_of(
    st.builds(
        lambda name, data, mode: file(name, data, mode, **OWNER),
        paths,
        st.binary(max_size=3),
        modes,
    ),
    st.builds(lambda name, mode: directory(name, mode, **OWNER), paths, modes),
    st.builds(lambda name, target: symlink(name, target, **OWNER), paths, paths),
    st.builds(hard, paths, paths),
    st.builds(white, paths),
    st.builds(opaque, paths),
)
stacks = st.lists(st.lists(members, max_size=8), min_size=1, max_size=4)


class OnDisk:
    """Layers applied to a real directory, the obvious way.

    What it has no answer to it leaves out: ways through links, links to what is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own: set[Path] = set()

    def apply(self, parts: Sequence[Part]) -> list[Part]:
        """Apply a layer; return those of its members that it consists of."""
        self.own = set()
        return [part for part in parts if self._apply(part)]

    def _apply(self, part: Part) -> bool:
        info = part.info
        path = self.root / info.name
        above = [each for each in path.parents if each.is_relative_to(self.root)]
        if any(each.is_symlink() or (each.exists() and not each.is_dir()) for each in above):
            return False
        if path.name == ".wh..wh..opq":
            if path.parent.is_dir():
                self._clear(path.parent)
            return True
        if path.name.startswith(".wh."):
            hidden = path.with_name(path.name[4:])
            if hidden in self.own and hidden.is_dir() and not hidden.is_symlink():
                self._clear(hidden)
            elif hidden not in self.own:
                self._remove(hidden)
            return True
        if info.islnk():
            target = self.root / info.linkname
            ways = [each for each in target.parents if each.is_relative_to(self.root)]
            if any(each.is_symlink() for each in ways) or not os.path.lexists(target):
                return False
            # What it replaces may be what it is to, or hold it.
            if (target.is_dir() and not target.is_symlink()) or target.is_relative_to(path):
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (info.isdir() and path.is_dir() and not path.is_symlink()):
            self._remove(path)
        if info.islnk():
            os.link(self.root / info.linkname, path, follow_symlinks=False)
        elif info.issym():
            path.symlink_to(info.linkname)
        elif info.isdir():
            path.mkdir(exist_ok=True)
            path.chmod(info.mode)
        else:
            path.write_bytes(part.data)
            path.chmod(info.mode)
        self.own |= {path, *above[:-1]}
        return True

    def _clear(self, directory: Path) -> None:
        for each in directory.iterdir():
            if each not in self.own:
                self._remove(each)
            elif each.is_dir() and not each.is_symlink():
                self._clear(each)

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def opened(data: bytes) -> Iterator[int]:
    """Open a file with some data."""
    fd = os.memfd_create("layer")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def in_memory(layers: Sequence[bytes]) -> Tree:
    """Return what layers become, by way of the tar that is made of them."""
    tree = RootLayers(Limits())
    for data in layers:
        with opened(data) as fd:
            tree.apply_file(fd)
    out = bytearray()
    for part in FlatTar(tree.root).parts():
        match part:
            case Span(number, offset, size):
                out += layers[number][offset : offset + size]
            case Zeros(size):
                out += bytes(size)
            case bytes():
                out += part
    return tree_of_tar(io.BytesIO(out))


def comparable(tree: Tree) -> Tree:
    """Return a tree without times and owners: they differ in directories that nobody has."""
    return {
        name: attrs.evolve(entry, mtime=0, uid=0, gid=0, xattrs={}) for name, entry in tree.items()
    }


@given(stacks)
@settings(deadline=None)
def test_layers_become_in_memory_what_they_become_on_a_disk(stack: list[list[Part]]) -> None:
    """Whatever order whiteouts, replacements and links come in, nobody sees a difference."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        root.mkdir()
        root.chmod(0o755)
        before = os.umask(0o022)
        try:
            disk = OnDisk(root)
            kept = [disk.apply(parts) for parts in stack]
        finally:
            os.umask(before)
        expected = tree_of_directory(root)

    actual = in_memory([layer(*parts) for parts in kept])

    assert differences(comparable(expected), comparable(actual)) == []


@given(stacks)
@settings(deadline=None)
def test_the_same_layers_give_the_same_tar(stack: list[list[Part]]) -> None:
    """Every stack is either refused or gives one tree, also if it makes no sense."""

    def outcome() -> Tree | str:
        try:
            return in_memory([layer(*parts) for parts in stack])
        except LayerError as error:
            return error.problem

    assert outcome() == outcome()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a layer in which some bytes were changed, and which may end early."""
    parts = draw(st.lists(members, min_size=1, max_size=4))
    parts.append(file(b"n" * 120, b"x" * 600, xattrs={b"user.x": b"y"}))
    data = bytearray(layer(*parts))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


def read(data: bytes) -> None:
    """Read a layer, which may be refused."""
    with opened(data) as fd, suppress(LayerError):
        for member in LayerReader(fd, Limits(), Budget(1 << 30, "bytes")).members():
            assert 0 <= member.offset <= len(data)
            assert sum(size for _, size in member.segments or ()) <= len(data)


@given(damaged() | st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """A registry may send anything: it ends in members, or in one kind of error."""
    read(data)


@given(st.binary(max_size=300))
def test_any_pax_header_is_read_or_refused(data: bytes) -> None:
    """Its lengths are its author's."""
    try:
        records = parse_records(data)
    except LayerError:
        return
    assert all(records.values())


@given(st.binary(max_size=200))
def test_no_path_leads_out(path: bytes) -> None:
    """Whatever a member is called, it is below the root."""
    assert not {b"", b".", b".."} & set(clean(path))


links = st.lists(
    st.tuples(
        component, st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b".", b""]), max_size=5)
    ),
    max_size=3,
)


@given(links, st.lists(st.sampled_from([b"a", b"b", b"c", b".."]), max_size=6))
def test_every_way_ends_below_the_root(
    targets: list[tuple[bytes, list[bytes]]], way: list[bytes]
) -> None:
    """Links may be loops, lead up, or to nothing: the way begins with the root and is finite."""
    root = Directory(0o755, 0, 0, 0)
    for name, parts in targets:
        root.children[name] = Symlink(0, 0, 0, (), target=b"/".join(parts) or b"/")

    with suppress(LayerError):
        found = follow(root, way, b"member")
        assert found[0] == (b"", root)
        assert all(name not in (b"", b".", b"..") for name, _ in found[1:])
