"""Pulling from a registry that is honest, and from one that fails now and then."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from image_puller import QUICK, content, partials, pull
from registry_server import (
    OCI_INDEX,
    OCI_MANIFEST,
    Reply,
    digest_of,
    noise,
    open_registry,
)

from boxlite._errors import (
    HostError,
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
    RegistryError,
)
from boxlite._images.blobs import BlobStore
from boxlite._images.endpoints import RegistryOptions
from boxlite._images.platform import Platform
from boxlite._images.reference import Reference
from boxlite._images.registry import open_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from registry_server import RegistryServer

    from boxlite._images.progress import PullProgress


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    """A registry on loopback."""
    with open_registry() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A store with nothing in it."""
    return BlobStore(tmp_path / "images")


async def test_everything_is_in_the_store(registry: RegistryServer, store: BlobStore) -> None:
    """The manifest, the configuration and the layers, byte for byte, and nothing else."""
    layers = noise(1_500_000, 1), noise(10, 2)
    registry.put_image(*layers, config={"config": {"Env": ["A=b"], "Cmd": ["sh"]}})
    pulled = await pull(store, registry)

    assert pulled.config.env == ("A=b",)
    assert pulled.config.cmd == ("sh",)
    assert [layer.digest for layer in pulled.manifest.layers] == [digest_of(x) for x in layers]
    assert pulled.manifest_descriptor.digest == digest_of(registry.manifests["latest"])
    assert content(store) == {
        digest_of(data): data for data in (*registry.blobs.values(), registry.manifests["latest"])
    }
    assert partials(store) == []
    assert store.path(digest_of(layers[0])).stat().st_mode & 0o777 == 0o600
    assert store.blobs.stat().st_mode & 0o777 == 0o700


async def test_what_is_there_is_not_downloaded_again(
    registry: RegistryServer, store: BlobStore
) -> None:
    """By its tag only the manifest is asked for, for it may have moved."""
    registry.put_image(noise(1000))
    await pull(store, registry)
    registry.requests.clear()
    await pull(store, registry)

    assert [request.path for request in registry.requests] == ["/v2/test/image/manifests/latest"]


async def test_by_its_digest_it_is_had_without_the_registry(store: BlobStore) -> None:
    """Content that is named by its digest cannot have changed."""
    with open_registry() as registry:
        digest = registry.put_image(noise(1000))["digest"]
        await pull(store, registry, name=f"test/image@{digest}")
    pulled = await pull(store, registry, name=f"test/image@{digest}")

    assert pulled.manifest_descriptor.digest == digest


async def test_request_says_who_asks_and_takes_no_compression(
    registry: RegistryServer, store: BlobStore
) -> None:
    """A digest is of bytes, so nobody may change them on the way."""
    registry.put_image(noise(1000))
    await pull(store, registry)

    for request in registry.requests:
        assert request.headers["user-agent"].startswith("boxlite")
        assert request.headers["accept-encoding"] == "identity"
    assert OCI_MANIFEST in registry.requests[0].headers["accept"]


async def test_progress_is_told(registry: RegistryServer, store: BlobStore) -> None:
    """Each piece from its beginning to its end; a large one in between as well."""
    layer = noise(1_500_000)
    registry.put_image(layer)
    told: list[PullProgress] = []
    pulled = await pull(store, registry, on_progress=told.append)
    await pull(store, registry, on_progress=told.append)

    of_layer = [event for event in told if event.kind == "layer"]
    assert of_layer[0].state == "waiting"
    assert 3 <= len([e for e in of_layer if e.state == "downloading"]) <= 7
    assert [e.state for e in of_layer[-3:]] == ["verified", "waiting", "cached"]
    assert [e.done_bytes for e in of_layer[:-2]] == sorted(e.done_bytes for e in of_layer[:-2])
    assert {e.total_bytes for e in of_layer} == {len(layer)}
    assert {e.image for e in told} == {pulled.reference.familiar}
    assert [e.state for e in told if e.kind == "manifest"] == ["verified", "verified"]
    assert [e.state for e in told if e.kind == "config"][-1] == "cached"


async def test_parallel_callers_download_once(registry: RegistryServer, store: BlobStore) -> None:
    """Two images that share a layer, and two callers who want the same."""
    shared = noise(700_000)
    registry.put_image(shared, noise(10, 1), tag="one")
    registry.put_image(shared, noise(10, 2), tag="two")
    async with open_client(store, RegistryOptions(patience=QUICK)) as client:
        async with trio.open_nursery() as nursery:
            for tag in ("one", "one", "two"):
                nursery.start_soon(
                    client.pull, Reference.parse(f"{registry.host}/test/image:{tag}")
                )

    blobs = [request.path for request in registry.asked("/blobs/")]
    assert len(blobs) == len(set(blobs)) == 5


async def test_platform_is_chosen(registry: RegistryServer, store: BlobStore) -> None:
    """Out of an index, past what is not for any machine; the index is kept as well."""
    amd64 = registry.put_image(b"amd64", tag=None)
    arm64 = registry.put_image(b"arm64", tag=None, config={"architecture": "arm64"})
    unknown = {"os": "unknown", "architecture": "unknown"}
    index = registry.put_manifest(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                amd64 | {"platform": unknown},
                arm64 | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
                amd64 | {"platform": {"os": "linux", "architecture": "amd64"}},
            ],
        },
        tag="latest",
    )
    default = await pull(store, registry)
    other = await pull(store, registry, platform=Platform.parse("linux/arm64"))

    assert default.manifest_descriptor.digest == amd64["digest"]
    assert other.manifest_descriptor.digest == arm64["digest"]
    assert index["digest"] in set(store.digests())
    with pytest.raises(ImageNotFoundError, match="s390x: there is linux/arm64/v8, linux/amd64"):
        await pull(store, registry, platform=Platform.parse("linux/s390x"))


async def test_image_for_another_machine_is_not_taken(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Without an index only the configuration says what it is for."""
    registry.put_image(b"layer", config={"architecture": "arm64"})

    with pytest.raises(ImageNotFoundError, match=r"linux/amd64: there is linux/arm64"):
        await pull(store, registry)
    assert registry.asked(digest_of(b"layer")) == []


async def test_name_that_is_not_there(registry: RegistryServer, store: BlobStore) -> None:
    """It is asked for once: it will not be there the next time either."""
    with pytest.raises(ImageNotFoundError, match="has none of that name"):
        await pull(store, registry)
    assert len(registry.requests) == 1


async def test_piece_that_is_not_there(registry: RegistryServer, store: BlobStore) -> None:
    """A registry that lost a layer is at fault, and not the name."""
    registry.put_image(b"layer")
    del registry.blobs[digest_of(b"layer")]

    with pytest.raises(RegistryError, match=r"status 404 \(BLOB_UNKNOWN\)") as caught:
        await pull(store, registry)
    assert caught.value.status == 404
    assert caught.value.url.endswith(digest_of(b"layer"))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_failure_of_the_moment_is_tried_again(
    registry: RegistryServer, store: BlobStore, status: int
) -> None:
    """Registries have bad moments, and ask for some patience."""
    registry.put_image(b"layer")
    registry.on("/manifests/", Reply(status, headers={"Retry-After": "0"}))
    registry.on("/blobs/", Reply(status), Reply(status))
    await pull(store, registry)

    assert len(registry.asked("/manifests/")) == 2
    assert len(registry.asked("/blobs/")) == 4


async def test_tries_have_an_end(registry: RegistryServer, store: BlobStore) -> None:
    """The error says what the last of them got."""
    registry.on("/manifests/", *[Reply(503)] * 10)

    with pytest.raises(RegistryError, match=r"status 503 \(tried 5 times\)") as caught:
        await pull(store, registry)
    assert caught.value.status == 503
    assert len(registry.requests) == 5


async def test_other_failure_is_not_tried_again(registry: RegistryServer, store: BlobStore) -> None:
    """What is said in the specification's words is told, and nothing else."""
    body = {"errors": [{"code": "UNSUPPORTED", "message": "\x1b[2J"}, {"code": "\x1b"}, 7]}
    registry.on("/manifests/", Reply(400, json.dumps(body).encode()))

    with pytest.raises(RegistryError, match=r"status 400 \(UNSUPPORTED\) \(http") as caught:
        await pull(store, registry)
    assert "\x1b" not in str(caught.value)
    assert len(registry.requests) == 1


async def test_nobody_there(store: BlobStore) -> None:
    """The error names the registry and what the system said."""
    with open_registry() as registry:
        pass
    with pytest.raises(RegistryError, match="Connection refused") as caught:
        await pull(store, registry)
    assert caught.value.status is None


async def test_cut_body_is_resumed(registry: RegistryServer, store: BlobStore) -> None:
    """What came before the connection broke is not asked for again."""
    layer = noise(900_000)
    registry.put_image(layer)
    registry.on(digest_of(layer), Reply(200, layer[:600_000], length=len(layer)))
    await pull(store, registry)

    assert [r.headers.get("range") for r in registry.asked(digest_of(layer))] == [
        None,
        "bytes=600000-",
    ]
    assert content(store)[digest_of(layer)] == layer


async def test_short_body_is_tried_again(registry: RegistryServer, store: BlobStore) -> None:
    """A body may end early without a sign that it did."""
    registry.put_image(b"layer")
    registry.on(digest_of(b"layer"), Reply(200, b"la"))
    await pull(store, registry)

    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_server_without_ranges_starts_anew(
    registry: RegistryServer, store: BlobStore
) -> None:
    """It sends everything, whatever it was asked for."""
    layer = noise(900_000)
    registry.knows_ranges = False
    registry.put_image(layer)
    registry.on(digest_of(layer), Reply(200, layer[:600_000], length=len(layer)))
    await pull(store, registry)

    assert content(store)[digest_of(layer)] == layer


@pytest.mark.parametrize(
    "reply",
    [
        Reply(416),
        Reply(206, b"xyz", {"Content-Range": "bytes 0-2/5"}),
        Reply(206, b"xyz"),
    ],
)
async def test_wrong_answer_to_a_range_starts_anew(
    registry: RegistryServer, store: BlobStore, reply: Reply
) -> None:
    """What there is must not be continued with anything but what follows it."""
    registry.put_image(b"layer")
    registry.on(digest_of(b"layer"), Reply(200, b"la", length=5), reply)
    await pull(store, registry)

    assert [r.headers.get("range") for r in registry.asked(digest_of(b"layer"))] == [
        None,
        "bytes=2-",
        None,
    ]
    assert content(store)[digest_of(b"layer")] == b"layer"


@pytest.mark.parametrize("left", [b"XX", b"XXXXX", b"XXXXXXXX"])
async def test_broken_partial_file_is_not_believed(
    registry: RegistryServer, store: BlobStore, left: bytes
) -> None:
    """A crash of the machine may have left anything in it."""
    registry.put_image(b"layer")
    store.partial(digest_of(b"layer")).write_bytes(left)
    await pull(store, registry)

    assert content(store)[digest_of(b"layer")] == b"layer"
    assert partials(store) == []


async def test_whole_partial_file_is_not_downloaded(
    registry: RegistryServer, store: BlobStore
) -> None:
    """A crash between the last byte and the name costs nothing."""
    registry.put_image(b"layer")
    store.partial(digest_of(b"layer")).write_bytes(b"layer")
    await pull(store, registry)

    assert registry.asked(digest_of(b"layer")) == []
    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_cancelled_download_goes_on_the_next_time(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Everything that was written counts, and no file stays open."""
    layer = noise(900_000)
    registry.put_image(layer)

    def half() -> Iterator[bytes]:
        yield layer[:600_000]
        registry.ended.wait(30)

    registry.on(digest_of(layer), Reply(200, length=len(layer), chunks=half()))
    before = set(os.listdir("/proc/self/fd"))
    with trio.CancelScope() as scope:
        await pull(
            store,
            registry,
            on_progress=lambda event: scope.cancel() if event.done_bytes > 500_000 else None,
        )
    assert scope.cancelled_caught
    written = store.partial(digest_of(layer)).stat().st_size
    opened = set(os.listdir("/proc/self/fd")) - before
    assert not [fd for fd in opened if _target(fd).startswith(str(store.root))]
    assert written >= 500_000
    await pull(store, registry)

    assert registry.asked(digest_of(layer))[-1].headers["range"] == f"bytes={written}-"
    assert content(store)[digest_of(layer)] == layer


def _target(fd: str) -> str:
    try:
        return str(Path("/proc/self/fd", fd).readlink())
    except FileNotFoundError:
        return ""


async def test_cancelling_the_first_lets_the_second_go_on(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Who waits for another's download takes it over where it was left."""
    layer = noise(900_000)
    registry.put_image(layer)

    def half() -> Iterator[bytes]:
        yield layer[:600_000]
        registry.ended.wait(30)

    registry.on(digest_of(layer), Reply(200, length=len(layer), chunks=half()))
    async with open_client(store, RegistryOptions(patience=QUICK)) as client:
        reference = Reference.parse(f"{registry.host}/test/image")
        is_half, is_waiting = trio.Event(), trio.Event()

        async def first(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                task_status.started(scope)
                await client.pull(
                    reference,
                    on_progress=lambda e: is_half.set() if e.done_bytes > 500_000 else None,
                )

        async def second() -> None:
            await client.pull(
                reference,
                on_progress=lambda e: is_waiting.set() if e.digest == digest_of(layer) else None,
            )

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                scope = await nursery.start(first)
                await is_half.wait()
                nursery.start_soon(second)
                await is_waiting.wait()
                scope.cancel()

    assert len(registry.asked(digest_of(layer))) == 2
    assert content(store)[digest_of(layer)] == layer


class _CancelAfter(trio.abc.Instrument):
    """Cancels a scope when tasks have run for some steps."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count, and cancel."""
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def test_cancelling_at_any_step_leaves_nothing(
    registry: RegistryServer, store: BlobStore
) -> None:
    """No file, no connection, nothing half in the store; and the next one succeeds."""
    layers = noise(600_000, 1), noise(300_000, 2)
    registry.put_image(*layers)
    await pull(BlobStore(store.root.with_name("warm")), registry)
    before = {fd: _target(fd) for fd in os.listdir("/proc/self/fd")}
    cancelled = 0
    store.root.mkdir()
    for steps in range(1, 1000, 5):
        here = BlobStore(store.root / str(steps))
        with trio.CancelScope() as scope:
            instrument = _CancelAfter(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await pull(here, registry)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            break  # It is done in fewer steps.
        cancelled += 1
        own = {fd: _target(fd) for fd in os.listdir("/proc/self/fd")}
        assert not [
            target
            for fd, target in own.items()
            if fd not in before and (str(store.root) in target or _is_connected(fd, registry))
        ]
        for digest, data in content(here).items():
            assert digest_of(data) == digest
        for name in partials(here):
            assert not name.count("."), "add() left something"
        await pull(here, registry)
        assert len(content(here)) == 4
        assert partials(here) == []
    assert cancelled > 10


def _is_connected(fd: str, registry: RegistryServer) -> bool:
    """Tell whether a descriptor is a client's connection to the registry."""
    try:
        with socket.socket(fileno=os.dup(int(fd))) as connection:
            return bool(connection.getpeername()[1] == int(registry.host.rpartition(":")[2]))
    except (OSError, IndexError):
        return False


async def test_no_space_is_an_error_of_this_machine(
    registry: RegistryServer, store: BlobStore
) -> None:
    """The registry is not at fault, and is not tried again."""
    registry.put_image(b"layer")
    store.root.parent.mkdir(exist_ok=True)
    store.root.write_bytes(b"in the way")

    with pytest.raises(HostError, match="cannot be kept in"):
        await pull(store, registry)


async def test_disk_that_fills_up(
    registry: RegistryServer, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a layer; what was written stays for the next time, and is right."""
    layer = noise(900_000)
    registry.put_image(layer)
    pwrite = os.pwrite

    def fill(fd: int, data: bytes, offset: int) -> int:
        if offset >= 400_000:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data[:1000], offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fill)
        with pytest.raises(HostError, match="No space left on device"):
            await pull(store, registry)
    written = store.partial(digest_of(layer)).read_bytes()
    assert 400_000 <= len(written) <= 401_000
    assert layer.startswith(written)
    await pull(store, registry)

    assert registry.requests[-1].headers["range"] == f"bytes={len(written)}-"
    assert content(store)[digest_of(layer)] == layer


async def test_damaged_manifest_is_had_again(registry: RegistryServer, store: BlobStore) -> None:
    """By its digest it is had from the store, when it has that digest."""
    digest = registry.put_image(b"layer")["digest"]
    await pull(store, registry)
    path = store.path(digest)
    path.write_bytes(b"x" * path.stat().st_size)
    pulled = await pull(store, registry, name=f"test/image@{digest}")

    assert pulled.manifest_descriptor.digest == digest
    assert content(store)[digest] == registry.manifests[digest]


async def test_image_may_be_too_large(registry: RegistryServer, store: BlobStore) -> None:
    """Before anything of it is downloaded."""
    registry.put_image(noise(10_000))

    with pytest.raises(ImageRefusedError, match="and 5000 are allowed"):
        await pull(store, registry, max_image_bytes=5000)
    assert registry.asked("/blobs/") == []


@pytest.mark.parametrize(
    "options",
    [
        {"mirrors": {"docker.io": ("https://mirror.example",)}},
        {"mirrors": {"a/b": ("mirror.example",)}},
        {"mirrors": {"docker.io": "mirror.example"}},
        {"insecure": {"http://host"}},
        {"insecure": "host"},
        {"max_image_bytes": 0},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    """A host with a scheme would never match anything."""
    with pytest.raises(InvalidOptionError):
        RegistryOptions(**options)


async def test_mirror_is_asked_first(registry: RegistryServer, store: BlobStore) -> None:
    """The registry hears nothing if its mirror has everything."""
    with open_registry() as mirror:
        mirror.put_image(b"layer")
        await pull(store, registry, mirrors={registry.host: (mirror.host,)})

    assert registry.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
async def test_mirror_that_fails_is_passed_over(
    registry: RegistryServer, store: BlobStore, status: int
) -> None:
    """A mirror is asked for what is faster, and never for what is true."""
    registry.put_image(b"layer")
    with open_registry() as mirror:
        mirror.guard("", lambda _: Reply(status))
        await pull(store, registry, mirrors={registry.host: (mirror.host,)})

    assert content(store)[digest_of(b"layer")] == b"layer"


async def test_mirror_that_is_gone_is_not_asked_again(
    registry: RegistryServer, store: BlobStore
) -> None:
    """It would cost the time of a connection for each piece. The error tells of it."""
    with open_registry() as gone:
        pass
    with pytest.raises(ImageNotFoundError) as caught:
        await pull(store, registry, mirrors={registry.host: (gone.host,)})
    assert [note for note in caught.value.__notes__ if gone.host in note]


async def test_layer_begun_by_a_mirror_is_ended_by_the_registry(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Both have the same bytes, or the digest would show it."""
    layer = noise(900_000)
    registry.put_image(layer)
    with open_registry() as mirror:
        mirror.put_image(layer)
        mirror.on(digest_of(layer), Reply(200, layer[:600_000], length=len(layer)))
        await pull(store, registry, mirrors={registry.host: (mirror.host,)})

    assert [r.headers.get("range") for r in registry.requests] == ["bytes=600000-"]
    assert content(store)[digest_of(layer)] == layer


async def test_mirror_with_wrong_content_is_an_error(
    registry: RegistryServer, store: BlobStore
) -> None:
    """Somebody ought to know that it lies."""
    registry.put_image(b"layer")
    with open_registry() as mirror:
        mirror.put_image(b"layer")
        mirror.blobs[digest_of(b"layer")] = b"LAYER"
        with pytest.raises(ImageRefusedError, match="has not the digest"):
            await pull(store, registry, mirrors={registry.host: (mirror.host,)})
    assert partials(store) == []
