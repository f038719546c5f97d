"""What is in a root file system, as data that can be compared, wherever it is."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from typing import BinaryIO

_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


@attrs.frozen(kw_only=True)
class Entry:
    """What is at a path.

    Args:
        mode: Its type and permissions.
        uid: Its owner.
        gid: Its owner's group.
        mtime: When it changed, in whole seconds.
        size: Bytes of a file.
        digest: SHA-256 of a file's data.
        target: Where a symbolic link leads.
        device: Major and minor number of a device.
        xattrs: Its extended attributes.
        names: All paths that it has, if it is no directory.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    digest: str = ""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = attrs.field(factory=dict)
    names: tuple[bytes, ...] = ()


Tree = dict[bytes, Entry]


def tree_of_directory(root: Path) -> Tree:
    """Return what is in a directory of this machine; the directory itself is ``b"."``."""
    tree: Tree = {}
    names: dict[int, list[bytes]] = {}
    inodes: dict[bytes, int] = {}
    top = os.fsencode(root)
    waiting = [b"."]
    while waiting:
        name = waiting.pop()
        path = top + b"/" + name
        found = os.lstat(path)
        tree[name] = _entry_of(path, found)
        if stat.S_ISDIR(found.st_mode):
            start = b"" if name == b"." else name + b"/"
            waiting += [start + each for each in os.listdir(path)]
        else:
            names.setdefault(found.st_ino, []).append(name)
            inodes[name] = found.st_ino
            assert found.st_dev == root.stat().st_dev
    for name, inode in inodes.items():
        assert os.lstat(top + b"/" + name).st_nlink == len(names[inode])
        tree[name] = attrs.evolve(tree[name], names=tuple(sorted(names[inode])))
    return tree


def _entry_of(path: bytes, found: os.stat_result) -> Entry:
    kind = stat.S_IFMT(found.st_mode)
    digest = ""
    if kind == stat.S_IFREG:
        with Path(os.fsdecode(path)).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime=found.st_mtime_ns // 1_000_000_000,
        size=found.st_size if kind == stat.S_IFREG else 0,
        digest=digest,
        target=os.readlink(path)  # noqa: PTH115 - a Path would be tidied up
        if kind == stat.S_IFLNK
        else b"",
        device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in _DEVICES else (0, 0),
        xattrs={
            os.fsencode(each): os.getxattr(path, each, follow_symlinks=False)
            for each in os.listxattr(path, follow_symlinks=False)
        },
    )


def tree_of_squashfs(image: Path, work: Path) -> Tree:
    """Return what is in a squashfs, as ``sqfs2tar`` gives it.

    Args:
        image: The squashfs.
        work: A directory for the tar that is read.
    """
    archive = work / f"{image.name}.tar"
    with archive.open("wb") as file:
        subprocess.run(["sqfs2tar", "-s", "-r", ".", str(image)], stdout=file, check=True)
    with archive.open("rb") as file:
        tree = tree_of_tar(file)
    archive.unlink()
    return tree


def tree_of_tar(archive: BinaryIO) -> Tree:
    """Return what is in a tar of a whole root, as :mod:`tarfile` reads it."""
    tree: Tree = {}
    first: dict[bytes, bytes] = {}
    with tarfile.open(fileobj=archive, errors="surrogateescape") as tar:
        for member in tar:
            name = _clean(member.name)
            if member.islnk():
                first[name] = _clean(member.linkname)
                tree[name] = tree[first[name]]
            else:
                first[name] = name
                tree[name] = _entry_in(tar, member)
    names: dict[bytes, list[bytes]] = {}
    for name, of in first.items():
        names.setdefault(of, []).append(name)
    return {
        name: entry
        if stat.S_ISDIR(entry.mode)
        else attrs.evolve(entry, names=tuple(sorted(names[first[name]])))
        for name, entry in tree.items()
    }


def _clean(name: str) -> bytes:
    return os.fsencode(name).removeprefix(b"./") or b"."


def _entry_in(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    digest = ""
    if member.isreg():
        file: Any = tar.extractfile(member)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    start = "SCHILY.xattr."
    return Entry(
        mode=_TYPES[member.type] | member.mode,
        uid=member.uid,
        gid=member.gid,
        mtime=int(member.mtime),
        size=member.size if member.isreg() else 0,
        digest=digest,
        target=os.fsencode(member.linkname) if member.issym() else b"",
        device=(member.devmajor, member.devminor)
        if member.isdev() and not member.isfifo()
        else (0, 0),
        xattrs={
            os.fsencode(key.removeprefix(start)): os.fsencode(value)
            for key, value in member.pax_headers.items()
            if key.startswith(start)
        },
    )


def differences(one: Tree, other: Tree) -> list[str]:
    """Return how two trees differ, in words; nothing if they do not."""
    found = [f"{name!r} is only in the first" for name in sorted(one.keys() - other.keys())]
    found += [f"{name!r} is only in the second" for name in sorted(other.keys() - one.keys())]
    for name in sorted(one.keys() & other.keys()):
        left, right = attrs.asdict(one[name]), attrs.asdict(other[name])
        found += [
            f"{name!r}: {field} is {left[field]!r} and {right[field]!r}"
            for field in left
            if left[field] != right[field]
        ]
    return found
