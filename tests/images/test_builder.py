"""The images and the registry that other tests rely on are what they are said to be."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import image_builder
import pytest
from image_builder import SETUID_ID, USER, USER_ID
from image_layer import LayerTar, net_raw_capability
from image_layout import OCI_INDEX, Layout, ToolError, run_tool

if TYPE_CHECKING:
    from image_registry import Registry


def members(image: Layout, layer: int) -> dict[str, tarfile.TarInfo]:
    """Return what is in a layer, by path."""
    digest = image.manifest()["layers"][layer]["digest"]
    with tarfile.open(image.blob(digest)) as tar:
        return {member.name.removeprefix("./"): member for member in tar}


def test_busybox_unpacks_to_what_its_layers_say(busybox: Layout, tmp_path: Path) -> None:
    """umoci, the judge of other unpackers, agrees with what the recipe means."""
    root = busybox.unpack(tmp_path / "bundle")

    assert sorted(path.name for path in (root / "opt").iterdir()) == [
        *("changed", "directory-then-file", "file-then-directory", "opaque", "rare", "two"),
    ]
    assert [path.name for path in (root / "opt/opaque").iterdir()] == ["new"]
    assert (root / "opt/changed").read_bytes() == b"of the second layer\n"
    assert (root / "opt/directory-then-file").read_bytes() == b"of the second layer\n"
    assert (root / "opt/file-then-directory/file").is_file()
    assert (root / "opt/two").read_bytes() == b"two names\n"
    assert (root / "bin/sh").stat().st_ino == (root / "bin/busybox").stat().st_ino
    assert stat.S_IMODE((root / "bin/su").stat().st_mode) == 0o4755
    assert (root / "bin/ls").readlink() == Path("/bin/busybox")
    assert f"{USER}:x:{USER_ID}:" in (root / "etc/passwd").read_text()
    assert (root / "opt/rare" / ("n" * 200)).is_file()
    assert (root / "opt/rare/Größe ☃").read_text() == "not ASCII\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root to make")
def test_busybox_has_owners_devices_and_capabilities(busybox: Layout, tmp_path: Path) -> None:
    """What root alone can unpack is in the layers, whoever built them."""
    root = busybox.unpack(tmp_path / "bundle")

    home, null = (root / "home" / USER).stat(), (root / "opt/rare/null").stat()
    large = (root / "opt/rare/large-ids").stat()
    assert (home.st_uid, home.st_gid) == (USER_ID, USER_ID)
    assert (large.st_uid, large.st_gid) == (4_000_000, 4_000_001)
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((root / "opt/rare/pipe").stat().st_mode)
    ping = root / "usr/local/bin/ping"
    assert os.getxattr(ping, "security.capability") == net_raw_capability()


def test_debian_is_a_whole_system(debian: Layout) -> None:
    """It has what a user of ``debian:bookworm`` expects, owned by root, without this machine's."""
    found = members(debian, 0)

    assert len(debian.manifest()["layers"]) == 1
    programs = ("apt-get", "bash", "python3.11", "passwd")
    assert all(f"usr/bin/{program}" in found for program in programs)
    assert "usr/sbin/adduser" in found
    assert found["usr/bin/passwd"].mode == 0o4755
    assert (found["etc/shadow"].uid, found["etc/shadow"].gid) == (0, 42)
    assert not {"etc/hostname", "etc/resolv.conf"} & set(found)
    assert not any(member.ischr() or member.isblk() for member in found.values())
    assert debian.config()["config"]["Cmd"] == ["bash"]
    assert "User" not in debian.config()["config"]


def test_app_shares_its_base_and_has_every_option(app: Layout, debian: Layout) -> None:
    """One layer is Debian's own, so that a store can be seen to keep it once."""
    base, own = app.manifest()["layers"]

    assert base["digest"] == debian.manifest()["layers"][0]["digest"]
    found = members(app, 1)
    assert (found[SETUID_ID].mode, found[SETUID_ID].uid) == (0o4755, 0)
    assert found[f"home/{USER}"].uid == USER_ID
    assert own["size"] < 1 << 20
    config = app.config()
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert config["config"]["Env"][1:] == ["GREETING=hello, world", "EMPTY="]
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/entrypoint"]
    assert config["config"]["Cmd"] == ["printenv", "GREETING"]
    assert config["config"]["User"] == USER
    assert config["config"]["WorkingDir"] == f"/home/{USER}"
    assert config["config"]["StopSignal"] == "SIGINT"


@pytest.mark.parametrize("name", ["busybox", "app"])
def test_a_configuration_names_the_layers_content(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The digests of what is in the layers are true: a puller that checks them is not misled."""
    image: Layout = request.getfixturevalue(name)
    found = []
    for layer in image.manifest()["layers"]:
        data = gzip.decompress(image.blob(layer["digest"]).read_bytes())
        found.append(f"sha256:{hashlib.sha256(data).hexdigest()}")

    assert image.config()["rootfs"]["diff_ids"] == found


def test_pushed_images_are_what_was_built(
    registry: Registry, busybox: Layout, busybox_reference: str
) -> None:
    """What a tag points to has the digest that it had before: nothing converts on the way."""
    said = registry.inspect("test/busybox:latest")

    assert busybox_reference == f"{registry.host}/test/busybox:latest"
    assert said["Digest"] == busybox.digest()
    assert said["Layers"] == [layer["digest"] for layer in busybox.manifest()["layers"]]
    assert registry.manifest("test/busybox:latest")[1] == busybox.digest()
    assert ("PUT", "/v2/test/busybox/manifests/latest") in registry.requests()


def test_docker_manifests(registry: Registry, busybox: Layout) -> None:
    """An image in Docker's format, version 2 schema 2, is served as one."""
    registry.push(busybox, "test/busybox:schema2", schema2=True)

    media_type, _, body = registry.manifest("test/busybox:schema2")
    assert media_type == "application/vnd.docker.distribution.manifest.v2+json"
    types = {layer["mediaType"] for layer in json.loads(body)["layers"]}
    assert types == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}


def test_zstd_layers(registry: Registry, busybox: Layout, tmp_path: Path) -> None:
    """The same content, compressed by zstd."""
    image = image_builder.zstd(busybox, tmp_path / "zstd")
    registry.push(image, "test/busybox:zstd")

    layers = json.loads(registry.manifest("test/busybox:zstd")[2])["layers"]
    assert {layer["mediaType"] for layer in layers} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
    for layer in layers:
        assert image.blob(layer["digest"]).read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert image.config() == busybox.config()


def test_two_platforms(registry: Registry, busybox: Layout, tmp_path: Path) -> None:
    """An index of two platforms is served whole, as it was written; amd64 is not the first."""
    image = image_builder.two_platforms(busybox, tmp_path)
    registry.push(image, "test/busybox:platforms", platforms=True)

    media_type, digest, body = registry.manifest("test/busybox:platforms")
    assert (media_type, digest) == (OCI_INDEX, image.digest())
    first, second = json.loads(body)["manifests"]
    assert first["platform"] == {"os": "linux", "architecture": "arm64"}
    assert second["digest"] == busybox.digest()
    for architecture, labels in (("amd64", None), ("arm64", {"platform": "arm64"})):
        listed = registry.manifest("test/busybox:platforms")
        assert listed[1] == digest
        manifest = {"amd64": second, "arm64": first}[architecture]["digest"]
        said = registry.inspect(f"test/busybox@{manifest}")
        assert (said["Architecture"], said["Labels"]) == (architecture, labels)


def test_a_manifest_can_be_put_as_it_is(registry: Registry, busybox_reference: str) -> None:
    """Tests can make a tag point to bytes of their own, as long as its blobs are there."""
    media_type, digest, body = registry.manifest("test/busybox:latest")
    spaced = body + b"\n"

    put = registry.put_manifest("test/busybox:spaced", media_type, spaced)

    assert put == f"sha256:{hashlib.sha256(spaced).hexdigest()}" != digest
    assert registry.manifest("test/busybox:spaced") == (media_type, put, spaced)


def test_archives(busybox: Layout, tmp_path: Path) -> None:
    """``docker save`` stores layers that are not compressed; an OCI archive is the layout."""
    saved = image_builder.docker_archive(busybox, tmp_path / "saved.tar", "test/busybox:latest")
    with tarfile.open(saved) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        [entry] = json.loads(member.read())
        layers = [tar.extractfile(name) for name in entry["Layers"]]
        digests = [hashlib.sha256(layer.read()).hexdigest() for layer in layers if layer]
    assert entry["RepoTags"] == ["docker.io/test/busybox:latest"]
    assert [f"sha256:{digest}" for digest in digests] == busybox.config()["rootfs"]["diff_ids"]

    archive = image_builder.oci_archive(busybox, tmp_path / "oci.tar")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert {"oci-layout", "index.json"} <= set(names)
    assert f"blobs/sha256/{busybox.digest().removeprefix('sha256:')}" in names


def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    """What a tool says on standard error is in the error."""
    with pytest.raises(ToolError, match="failed with 3:\nalas"):
        run_tool("sh", "-c", "echo alas >&2; exit 3")


def test_layers_are_the_same_each_time(tmp_path: Path) -> None:
    """A recipe gives the same bytes, so the same digests, on every machine."""
    for name in ("one", "two"):
        with LayerTar(tmp_path / name) as layer:
            layer.directory("a")
            layer.file("a/b", b"data", attributes={"user.x": b"y"})
            layer.whiteout("a/c")
            layer.whiteout("d")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as tar:
        assert tar.getnames() == ["a", "a/b", "a/.wh.c", ".wh.d"]
