"""The names of images: atomic, one file each, and never trusted to be whole."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
from hypothesis import given, strategies as st

from boxlite._images.catalog import Catalog, Entry
from boxlite._images.descriptor import Descriptor

MANIFEST = Descriptor(
    media_type="application/vnd.oci.image.manifest.v1+json", digest="sha256:" + "5" * 64, size=7
)
ALPINE = Entry(name="docker.io/library/alpine:latest", manifest=MANIFEST, added_at=1.5)
OTHER = attrs.evolve(ALPINE, name="ghcr.io/owner/other:1", added_at=2.5)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "names")


def file_of(catalog: Catalog, entry: Entry) -> Path:
    """Return the file of a name, which is put there, and alone in the directory."""
    before = set(catalog.root.iterdir()) if catalog.root.exists() else set()
    catalog.put(entry)
    [path] = set(catalog.root.iterdir()) - before
    return path


def test_names_are_read_back(catalog: Catalog) -> None:
    """By one that is opened later, too."""
    catalog.put(ALPINE)
    catalog.put(OTHER)
    later = Catalog(catalog.root)
    assert later.get(ALPINE.name) == ALPINE
    assert sorted(later.entries(), key=lambda entry: entry.name) == [ALPINE, OTHER]
    assert later.get("docker.io/library/debian:latest") is None


def test_a_home_without_names_has_none(catalog: Catalog) -> None:
    """Nothing is made by looking."""
    assert list(catalog.entries()) == []
    assert catalog.get(ALPINE.name) is None
    assert not catalog.remove(ALPINE.name)
    catalog.sweep()
    assert not catalog.root.exists()


def test_a_name_is_given_to_another_image_and_taken_away(catalog: Catalog) -> None:
    """A tag that has moved leads to one image, never to two."""
    catalog.put(ALPINE)
    moved = attrs.evolve(ALPINE, manifest=attrs.evolve(MANIFEST, digest="sha256:" + "6" * 64))
    catalog.put(moved)
    assert list(catalog.entries()) == [moved]
    assert catalog.remove(ALPINE.name)
    assert not catalog.remove(ALPINE.name)
    assert list(catalog.root.iterdir()) == []


@given(
    name=st.text(max_size=200).filter(lambda text: not any("\ud800" <= c < "\ue000" for c in text))
)
def test_no_name_is_a_path(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """What is in a manifest's annotations or on a command line never leaves the directory."""
    above = tmp_path_factory.mktemp("above")
    catalog = Catalog(above / "names")
    entry = attrs.evolve(ALPINE, name=name)
    path = file_of(catalog, entry)
    assert path.parent == catalog.root
    assert [each.name for each in above.iterdir()] == ["names"]
    assert len(path.name) == 64 + len(".json")
    assert catalog.get(name) == entry
    assert list(catalog.entries()) == [entry]


def test_files_are_for_their_owner(catalog: Catalog) -> None:
    """Which images somebody uses is nobody's business."""
    path = file_of(catalog, ALPINE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert catalog.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.rename"])
def test_a_failure_keeps_the_old_name_and_leaves_no_draft(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A full disk does not cost the names that there are."""
    catalog.put(ALPINE)
    files = sorted(catalog.root.iterdir())
    descriptors = os.listdir("/proc/self/fd")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OSError, match="No space left"):
            catalog.put(attrs.evolve(ALPINE, added_at=9.0))
    assert catalog.get(ALPINE.name) == ALPINE
    assert sorted(catalog.root.iterdir()) == files
    assert os.listdir("/proc/self/fd") == descriptors


def test_the_name_is_on_the_disk_after_its_content(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine leaves the old name or the new one, not an empty file."""
    done = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(fd: int) -> None:
        done.append("directory" if Path(f"/proc/self/fd/{fd}").is_dir() else "content")
        fsync(fd)

    def record_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    catalog.put(ALPINE)
    assert done == ["content", "rename", "directory"]
    catalog.remove(ALPINE.name)
    assert done[3:] == ["directory"]


def changed(**changes: object) -> bytes:
    """Return what a file says, but for some fields."""
    record = {"version": 1, **attrs.asdict(ALPINE), **changes}
    return json.dumps(record).encode()


DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "half of it": changed()[:-20],
    "no object": b"[]",
    "null": b"null",
    "deep": b"[" * 10_000,
    "of another version": changed(version=2),
    "a name that is none": changed(name=5),
    "another name": changed(name=OTHER.name),
    "a name that is no text": changed(name="\ud800"),
    "no manifest": changed(manifest=None),
    "a manifest with more": changed(manifest={**attrs.asdict(MANIFEST), "path": "/etc"}),
    "a digest that is a path": changed(
        manifest={**attrs.asdict(MANIFEST), "digest": "sha256:../../../etc/passwd"}
    ),
    "a size that is none": changed(manifest={**attrs.asdict(MANIFEST), "size": -1}),
    "no time": changed(added_at="yesterday"),
    "a time that is no number": changed(added_at=float("nan")),
    "an endless time": changed(added_at=float("inf")),
    "a time beyond all numbers": changed(added_at=10**400),
    "too much": changed() + b" " * (16 << 10),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_no_name_and_is_swept(catalog: Catalog, damage: str) -> None:
    """It is one image that has to be pulled again; all others are there."""
    catalog.put(OTHER)
    path = file_of(catalog, ALPINE)
    path.write_bytes(DAMAGED[damage])

    assert catalog.get(ALPINE.name) is None
    assert list(catalog.entries()) == [OTHER]
    catalog.sweep()
    assert not path.exists()
    assert list(catalog.entries()) == [OTHER]
    catalog.put(ALPINE)
    assert catalog.get(ALPINE.name) == ALPINE


@given(data=st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_content_is_a_name_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | str
) -> None:
    """Reading the names never fails because of what is in one."""
    catalog = Catalog(tmp_path_factory.mktemp("names"))
    path = file_of(catalog, ALPINE)
    path.write_bytes(data.encode("utf-8", "replace") if isinstance(data, str) else data)
    assert list(catalog.entries()) == []
    catalog.sweep()
    assert list(catalog.root.iterdir()) == []


def test_links_and_pipes_are_no_names(catalog: Catalog, tmp_path: Path) -> None:
    """Nothing is read through a link, and nobody waits for a pipe."""
    path = file_of(catalog, ALPINE)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert catalog.get(ALPINE.name) is None
    path.unlink()
    os.mkfifo(path)
    assert catalog.get(ALPINE.name) is None
    assert list(catalog.entries()) == []
    catalog.sweep()
    assert list(catalog.root.iterdir()) == []
    assert (tmp_path / "elsewhere").exists()


def test_what_was_being_written_is_swept(catalog: Catalog) -> None:
    """It is of a program that was killed, and has no name."""
    catalog.put(ALPINE)
    draft = catalog.root / ".half"
    draft.write_bytes(changed())
    assert list(catalog.entries()) == [ALPINE]
    catalog.sweep()
    assert not draft.exists()
    assert catalog.get(ALPINE.name) == ALPINE


def test_what_cannot_be_read_for_now_is_not_taken_for_damage(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is out of descriptors would otherwise prune every image of the home."""
    path = file_of(catalog, ALPINE)
    really = os.open

    def fail(where: str | Path, *rest: int) -> int:
        if Path(where) == path:
            raise OSError(errno.EMFILE, "Too many open files", str(where))
        return really(where, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        for use in (lambda: list(catalog.entries()), catalog.sweep):
            with pytest.raises(OSError, match="Too many open files"):
                use()
    assert catalog.get(ALPINE.name) == ALPINE


def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything would be garbage."""
    catalog.put(ALPINE)

    def fail(where: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(where))

    # Root may read everything, so its rights would not do.
    for function in ("listdir", "scandir"):
        monkeypatch.setattr(os, function, fail)
    with pytest.raises(PermissionError):
        list(catalog.entries())


def test_reading_names_leaves_no_descriptor(catalog: Catalog) -> None:
    """A program lists its images for years."""
    for number in range(10):
        catalog.put(attrs.evolve(ALPINE, name=f"docker.io/library/alpine:{number}"))
    before = os.listdir("/proc/self/fd")
    assert len(list(catalog.entries())) == 10
    catalog.sweep()
    assert os.listdir("/proc/self/fd") == before
