"""Registries that lie: nothing of what they send is kept, and the error says why."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from image_puller import QUICK, content, partials, pull
from registry_server import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    RegistryServer,
    Reply,
    digest_of,
    gzipped,
    noise,
    open_registry,
)

from boxlite._errors import ImageRefusedError, RegistryError
from boxlite._images.blobs import BlobStore
from boxlite._images.config import parse_config
from boxlite._images.manifest import Index, Manifest, parse_manifest
from boxlite._images.media import layer_compression
from boxlite._images.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = digest_of(b"")
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    """A registry on loopback."""
    with open_registry() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A store with nothing in it."""
    return BlobStore(tmp_path / "images")


async def test_wrong_digest(registry: RegistryServer, store: BlobStore) -> None:
    """The right number of other bytes, asked for once."""
    registry.put_image(b"layer")
    registry.blobs[digest_of(b"layer")] = b"LAYER"

    with pytest.raises(ImageRefusedError, match="has not the digest"):
        await pull(store, registry)
    assert len(registry.asked(digest_of(b"layer"))) == 1
    assert partials(store) == []
    assert digest_of(b"layer") not in content(store)


async def test_too_long_a_body(registry: RegistryServer, store: BlobStore) -> None:
    """It is not even written."""
    registry.put_image(b"layer")
    registry.blobs[digest_of(b"layer")] = b"layer and more"

    with pytest.raises(ImageRefusedError, match="more than the 5 bytes"):
        await pull(store, registry)
    assert partials(store) == []


async def test_body_without_an_end(registry: RegistryServer, store: BlobStore) -> None:
    """What is sent beyond the size is not waited for."""

    def endless() -> Iterator[bytes]:
        while not registry.ended.is_set():
            yield bytes(1 << 16)

    layer = noise(300_000)
    registry.put_image(layer)
    registry.on(digest_of(layer), Reply(200, length=1 << 40, chunks=endless()))

    with pytest.raises(ImageRefusedError, match="more than the 300000 bytes"):
        await pull(store, registry)


async def test_slow_body(registry: RegistryServer, store: BlobStore) -> None:
    """One that comes slower than any network is given up, and not tried again."""
    registry.put_image(b"layer")
    impatient = attrs.evolve(QUICK, rate=1e15, rate_seconds=0.0)

    with pytest.raises(RegistryError, match="slower than 1e.15 bytes per second"):
        await pull(store, registry, patience=impatient)
    assert len(registry.requests) == 1


async def test_silence(registry: RegistryServer, store: BlobStore) -> None:
    """An answer that pauses for too long is a failure of the moment."""

    def silent() -> Iterator[bytes]:
        yield b"la"
        registry.ended.wait(30)

    registry.put_image(b"layer")
    registry.on(digest_of(b"layer"), Reply(200, length=5, chunks=silent()))
    await pull(store, registry, patience=attrs.evolve(QUICK, read_seconds=0.5))

    assert content(store)[digest_of(b"layer")] == b"layer"
    assert registry.requests[-1].headers["range"] == "bytes=2-"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x1b[2J\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\x1b[2J\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 30_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    ],
    ids=["nothing", "ssh", "control", "length", "location", "headers", "informational"],
)
async def test_something_that_is_no_registry(store: BlobStore, sent: bytes) -> None:
    """Whatever it says is an error of ours, and does not reach a terminal."""

    async def talk(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(sent)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, talk, [listener])
        there = RegistryServer(f"127.0.0.1:{listener.socket.getsockname()[1]}", "http")
        with pytest.raises((RegistryError, ImageRefusedError)) as caught:
            await pull(store, there, patience=attrs.evolve(QUICK, tries=2))
        assert "\x1b" not in str(caught.value)
        nursery.cancel_scope.cancel()


async def test_no_answer_at_all(registry: RegistryServer, store: BlobStore) -> None:
    """Somebody who accepts the connection and says nothing."""

    def wait(_: object) -> Reply:
        registry.ended.wait(30)
        return Reply(503)

    registry.on("/manifests/", wait, wait)

    with pytest.raises(RegistryError, match=r"did not answer in time \(tried 2 times\)"):
        await pull(store, registry, patience=attrs.evolve(QUICK, header_seconds=0.1, tries=2))


async def test_manifest_with_another_digest(registry: RegistryServer, store: BlobStore) -> None:
    """Asked for by its digest, it must have that."""
    asked = registry.put_image(b"one", tag=None)["digest"]
    registry.put_image(b"two")
    registry.manifests[asked] = registry.manifests["latest"]

    with pytest.raises(ImageRefusedError, match=f"and {asked} was promised"):
        await pull(store, registry, name=f"test/image@{asked}")
    assert content(store) == {}


async def test_manifest_changed_on_the_way(registry: RegistryServer, store: BlobStore) -> None:
    """The header says what the registry meant."""
    registry.put_image(b"layer")
    body = registry.manifests["latest"]
    registry.on("/manifests/", Reply(200, body, {"Docker-Content-Digest": DIGEST}))

    with pytest.raises(ImageRefusedError, match=f"and {DIGEST} was promised"):
        await pull(store, registry)


async def test_manifest_of_another_size(registry: RegistryServer, store: BlobStore) -> None:
    """An index says how many bytes there are."""
    image = registry.put_image(b"layer", tag=None)
    entry = image | {"size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    registry.put_manifest({"schemaVersion": 2, "manifests": [entry]}, tag="latest")

    with pytest.raises(ImageRefusedError, match="and its index says 1"):
        await pull(store, registry)


async def test_oversized_manifest(registry: RegistryServer, store: BlobStore) -> None:
    """It is not read to its end."""

    def endless() -> Iterator[bytes]:
        while not registry.ended.is_set():
            yield b" " * (1 << 16)

    registry.on("/manifests/", Reply(200, length=1 << 40, chunks=endless()))

    with pytest.raises(ImageRefusedError, match="more than 4194304 bytes"):
        await pull(store, registry)


async def test_oversized_configuration(registry: RegistryServer, store: BlobStore) -> None:
    """Its size is known before it is asked for."""
    config = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 9 << 20}
    layer = {"mediaType": OCI_LAYER, "digest": DIGEST, "size": 9 << 20}
    registry.put_manifest({"schemaVersion": 2, "config": config, "layers": [layer]}, tag="latest")

    with pytest.raises(ImageRefusedError, match="its configuration has more than"):
        await pull(store, registry)
    assert registry.asked("/blobs/") == []


async def test_configuration_that_does_not_fit(registry: RegistryServer, store: BlobStore) -> None:
    """Before any layer is downloaded."""
    registry.put_image(b"layer", config={"rootfs": {"diff_ids": [DIGEST, DIGEST]}})

    with pytest.raises(ImageRefusedError, match="has 1 layers, and its configuration tells of 2"):
        await pull(store, registry)
    assert registry.asked(digest_of(b"layer")) == []


async def test_indexes_without_an_end(registry: RegistryServer, store: BlobStore) -> None:
    """An index may list indexes, a few times."""
    inner = registry.put_image(b"layer", tag=None)
    for depth in range(4):
        tag = f"depth{depth}"
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}
        inner = registry.put_manifest(document, tag=tag)
    await pull(store, registry, name="test/image:depth2")

    with pytest.raises(ImageRefusedError, match="lead to others more than 3 times"):
        await pull(store, registry, name="test/image:depth3")


@pytest.mark.parametrize("media", ["", "+gzip", "+zstd"])
async def test_layers_are_taken_as_they_are(
    registry: RegistryServer, store: BlobStore, media: str
) -> None:
    """Compressed or not, what is kept is what was sent."""
    layer = gzipped(noise(1000))
    registry.put_image(layer, media_type=OCI_LAYER + media)
    registry.guard(
        "/blobs/",
        lambda r: Reply(200, registry.blobs[r.path[-71:]], {"Content-Encoding": "gzip"}),
    )
    await pull(store, registry)

    assert content(store)[digest_of(layer)] == layer


def manifest(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a sound manifest with some changes; None leaves a field out."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(b"x"), "size": 1}],
    } | changes
    return {name: value for name, value in document.items() if value is not None}


def parsed(document: object) -> Manifest | Index:
    """Parse a document."""
    return parse_manifest(json.dumps(document).encode())


def layer(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a manifest whose only layer has some changes."""
    return manifest(layers=[manifest()["layers"][0] | changes])


def test_manifest_is_what_its_bytes_say() -> None:
    """With and without its media type."""
    for media_type in (OCI_MANIFEST, DOCKER_MANIFEST, None):
        found = parsed(manifest(mediaType=media_type))

        assert isinstance(found, Manifest)
        assert found.config.size == 2
        assert found.size == 3
        assert [each.digest for each in found.layers] == [digest_of(b"x")]
        assert found.descriptor.media_type == media_type or OCI_MANIFEST


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "not a JSON object"),
        ({}, "schema version 2"),
        ({"schemaVersion": 1, "fsLayers": []}, "Docker's schema 1, which is obsolete"),
        (
            {"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
            "Docker's schema 1, which is obsolete",
        ),
        (manifest(schemaVersion=True), "schema version 2"),
        (manifest(mediaType="text/html"), "unknown type, 'text/html'"),
        (manifest(mediaType=7), "'mediaType' is 7"),
        (manifest(mediaType=OCI_INDEX), "not what its media type says"),
        (manifest(manifests=[]), "could be read in two ways"),
        (manifest(layers=None, config=None), "or in none"),
        (manifest(config=None), "not a descriptor"),
        (manifest(layers={}), "'layers' is an object, and not a list"),
        (manifest(layers=[]), "no layers"),
        (manifest(layers=[7]), "not a descriptor"),
        (manifest(layers=[{}] * 501), "'layers' has more than 500 entries"),
        (manifest(layers=[layer()["layers"][0], layer(size=2)["layers"][0]]), "two sizes"),
        (manifest(config=layer()["layers"][0]), "not a container image"),
        (layer(digest="sha256:../../etc/passwd"), "not a sha256 digest"),
        (layer(digest=None), "not a sha256 digest"),
        (layer(size=-1), "the size of"),
        (layer(size=1.0), "the size of"),
        (layer(size=True), "the size of"),
        (layer(urls=["https://elsewhere.example/layer"]), "by URLs"),
        (layer(mediaType=f"{OCI_LAYER}+gzip+encrypted"), "encrypted layer"),
        (
            layer(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            "may not hand out",
        ),
        (
            layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "may not hand out",
        ),
        (layer(mediaType="application/wasm"), "unknown type, 'application/wasm'"),
        ({"schemaVersion": 2, "manifests": [{}] * 1001}, "more than 1000 entries"),
        ({"schemaVersion": 2, "manifests": [7]}, "not a descriptor"),
    ],
)
def test_manifest_is_refused(document: object, problem: str) -> None:
    """For a reason that says what to look at."""
    with pytest.raises(ValueError, match=problem):
        parsed(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 50 + b"1" + b"}" * 50,
        b'{"a":[' + b"[]," * 300_000 + b"[]]}",
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b'{"schemaVersion": 2, "mediaType": "\\ud800"}',
        b" " * (5 << 20),
    ],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    """Too deep, too large, too many, or none at all: never another error, and no long text."""
    with pytest.raises(ValueError, match=".") as caught:
        parse_manifest(data)
    assert len(str(caught.value)) < 200


def entry(platform: dict[str, str] | None, size: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return an entry of an index."""
    made = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % size), "size": size, **more}
    return made if platform is None else made | {"platform": platform}


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        ("linux/amd64", 1),
        ("linux/amd64/v2", 2),
        ("linux/amd64/v3", 3),
        ("linux/amd64/v4", 3),
        ("linux/arm", 6),
        ("linux/arm/v6", 6),
        ("linux/arm/v5", None),
        ("linux/arm64", 4),
        ("linux/riscv64", None),
        ("windows/amd64", 9),
        ("linux/x86_64", 1),
    ],
)
def test_best_platform_is_chosen(wanted: str, size: int | None) -> None:
    """A processor runs what was made for older ones, best what is nearest to it."""
    linux = {"os": "linux", "architecture": "amd64"}
    index = parsed(
        {
            "schemaVersion": 2,
            "manifests": [
                entry(linux | {"variant": "v3"}, 3),
                entry(linux, 1),
                entry(linux, 8),
                entry(linux | {"variant": "v2"}, 2),
                entry(linux | {"architecture": "arm", "variant": "v6"}, 6),
                entry(linux | {"architecture": "arm64", "variant": "v8"}, 4),
                entry({"os": "windows", "architecture": "amd64"}, 9),
                entry(None, 5),
                entry(linux, 7, mediaType="application/vnd.example.signature"),
            ],
        }
    )
    assert isinstance(index, Index)
    chosen = index.choose(Platform.parse(wanted))

    assert (chosen.size if chosen else None) == size


def test_layer_compression() -> None:
    """Docker's types and OCI's."""
    assert layer_compression(OCI_LAYER) == "none"
    assert layer_compression(f"{OCI_LAYER}+zstd") == "zstd"
    assert layer_compression("application/vnd.docker.image.rootfs.diff.tar.gzip") == "gzip"


def test_configuration_is_read() -> None:
    """Every field that a box needs."""
    found = parse_config(
        json.dumps(
            {
                "os": "linux",
                "architecture": "arm64",
                "variant": "v8",
                "created": "2024-01-01T00:00:00Z",
                "config": {
                    "Env": ["A=b=c", "EMPTY=", "NONE", "=x"],
                    "Entrypoint": "/init",
                    "Cmd": ["a", "b"],
                    "WorkingDir": "srv/app",
                    "User": "1000:1000",
                    "ExposedPorts": {"80/tcp": {}},
                    "Volumes": {"/data": {}},
                    "Labels": {"a": "b"},
                    "StopSignal": "SIGINT",
                },
                "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            }
        ).encode(),
        layers=1,
    )

    assert found.env == ("A=b=c", "EMPTY=")
    assert (found.entrypoint, found.cmd) == (("/init",), ("a", "b"))
    assert (found.working_dir, found.user, found.stop_signal) == ("/srv/app", "1000:1000", "SIGINT")
    assert (found.exposed_ports, found.volumes) == (("80/tcp",), ("/data",))
    assert found.labels == {"a": "b"}
    assert found.diff_ids == (DIGEST,)
    assert (found.os, found.architecture) == ("linux", "arm64")
    assert found.created == "2024-01-01T00:00:00Z"


def test_configuration_may_say_nothing() -> None:
    """Null is what Go writes for what is empty."""
    nothing = {"Env": None, "Entrypoint": None, "Cmd": None, "Labels": None, "WorkingDir": ""}
    found = parse_config(json.dumps({"config": nothing, "rootfs": None}).encode())

    assert found == parse_config(b'{"config": null}')
    assert found.working_dir == "/"
    assert found.platform is None


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"Env": "A=b"}, "'Env' is 'A=b', and not a list"),
        ({"Env": [7]}, "'Env' is 7"),
        ({"Env": ["A=\0"]}, "'Env' has a NUL"),
        ({"Env": ["A=" + "x" * 200_000]}, "more than 131072 characters"),
        ({"Cmd": ["a"] * 10_001}, "more than 10000 entries"),
        ({"Labels": {"a": 7}}, "'Labels' is 7"),
        ({"Labels": []}, "'Labels' is a list"),
        ({"ExposedPorts": {"http": {}}}, "exposes the port 'http'"),
        ({"WorkingDir": "x" * 5000}, "more than 4095 characters"),
        ({"User": ["root"]}, "'User' is a list"),
        ({"User": "\ud800"}, "surrogate"),
    ],
)
def test_configuration_is_refused(wanted: dict[str, object], problem: str) -> None:
    """What could not be handed to a system call, or is not what the specification has."""
    with pytest.raises(ValueError, match=problem):
        parse_config(json.dumps({"config": wanted}).encode())


def test_digest_of_a_layer_is_checked() -> None:
    """It may become the name of a file."""
    with pytest.raises(ValueError, match="which is none"):
        parse_config(b'{"rootfs": {"diff_ids": ["../x"]}}')
