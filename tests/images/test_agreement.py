"""What others say of an image is what we say: umoci of its files, skopeo of its documents."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING

import attrs
import image_builder
import pytest
from image_homes import images_of, tree
from image_layout import skopeo
from image_trees import Tree, differences, tree_of_directory

from boxlite._images.manifest import Manifest, parse_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from image_layout import Layout
    from image_registry import Registry

    from boxlite._layout import HomeLayout


def as_anybody_unpacks(tree: Tree) -> Tree:
    """Return what of a tree is the same if an ordinary user unpacks it.

    Owners and devices are root's alone to make, and umoci keeps the owners in an attribute.
    """
    return {
        name: attrs.evolve(entry, uid=0, gid=0, xattrs={}, names=())
        for name, entry in tree.items()
        if stat.S_IFMT(entry.mode) not in (stat.S_IFCHR, stat.S_IFBLK)
    }


def assert_same(theirs: Tree, ours: Tree) -> None:
    """Assert that two trees are equal, as far as this user can make one."""
    assert len(ours) > 10
    if os.geteuid() != 0:
        # umoci makes a file of a device then.
        devices = {n for n, e in ours.items() if stat.S_ISCHR(e.mode) or stat.S_ISBLK(e.mode)}
        theirs = {name: entry for name, entry in theirs.items() if name not in devices}
        theirs, ours = as_anybody_unpacks(theirs), as_anybody_unpacks(ours)
    assert differences(theirs, ours) == []


@pytest.mark.parametrize("name", ["busybox", "debian", "app"])
async def test_the_root_of_a_real_image_is_what_umoci_unpacks(
    name: str, home: HomeLayout, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every file: type, mode, owner, attributes, links, size, data, target, device and time."""
    image: Layout = request.getfixturevalue(name)
    pulled = await images_of(home).pull(request.getfixturevalue(f"{name}_reference"))
    assert_same(tree_of_directory(image.unpack(tmp_path / "unpacked")), tree(pulled, tmp_path))


@pytest.mark.parametrize("form", ["zstd", "schema2", "index"])
async def test_the_root_of_a_converted_image_is_what_umoci_unpacks_of_the_original(
    form: str, home: HomeLayout, busybox: Layout, registry: Registry, tmp_path: Path
) -> None:
    """Debian's umoci reads neither zstd nor Docker's manifests itself."""
    pulled = await images_of(home).pull(push(busybox, form, registry, tmp_path))
    assert_same(tree_of_directory(busybox.unpack(tmp_path / "unpacked")), tree(pulled, tmp_path))


def push(busybox: Layout, form: str, registry: Registry, work: Path) -> str:
    """Push an image in another form, and return its reference."""
    name = f"test/agreement:{form}"
    match form:
        case "zstd":
            return registry.push(image_builder.zstd(busybox, work / "zstd"), name)
        case "schema2":
            return registry.push(busybox, name, schema2=True)
        case _:
            two = image_builder.two_platforms(busybox, work / "two")
            return registry.push(two, name, platforms=True)


@pytest.mark.parametrize("form", ["busybox", "debian", "app", "zstd", "schema2", "index"])
async def test_skopeo_reads_the_same_documents(
    form: str, home: HomeLayout, request: pytest.FixtureRequest, registry: Registry, tmp_path: Path
) -> None:
    """The manifest and the configuration, by their digests and by what is in them."""
    if form in ("busybox", "debian", "app"):
        reference = request.getfixturevalue(f"{form}_reference")
    else:
        reference = push(request.getfixturevalue("busybox"), form, registry, tmp_path)
    pulled = await images_of(home).pull(reference)
    name, _, tag = reference.rpartition(":")
    said = registry.inspect(f"{name.partition('/')[2]}:{tag}", "--raw")
    where = f"docker://{name}@{pulled.digest}"
    if form == "index":
        assert pulled.digest in [entry["digest"] for entry in said["manifests"]]
    else:
        assert registry.inspect(f"{name.partition('/')[2]}:{tag}")["Digest"] == pulled.digest

    raw = skopeo("inspect", "--raw", "--tls-verify=false", where).encode()
    assert digest_of(raw) == pulled.digest
    blobs = home.images / "blobs" / "sha256"
    assert (blobs / pulled.digest[7:]).read_bytes() == raw
    manifest = parse_manifest(raw)
    assert isinstance(manifest, Manifest)
    assert [layer.digest for layer in manifest.layers] == [
        layer["digest"] for layer in json.loads(raw)["layers"]
    ]

    config = skopeo("inspect", "--config", "--raw", "--tls-verify=false", where).encode()
    assert digest_of(config) == manifest.config.digest
    assert (blobs / manifest.config.hex).read_bytes() == config
    said = json.loads(config)
    ours, theirs = pulled.config, said["config"]
    assert list(ours.diff_ids) == said["rootfs"]["diff_ids"]
    assert (ours.os, ours.architecture) == (said["os"], said["architecture"])
    assert list(ours.env) == theirs.get("Env", [])
    assert list(ours.entrypoint) == theirs.get("Entrypoint", [])
    assert list(ours.cmd) == theirs.get("Cmd", [])
    assert ours.working_dir == theirs.get("WorkingDir", "/")
    assert ours.user == theirs.get("User", "")
    assert ours.labels == theirs.get("Labels", {})
    assert ours.stop_signal == theirs.get("StopSignal", "")


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
