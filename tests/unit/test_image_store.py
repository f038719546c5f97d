"""The store of blobs, and how long to wait for a registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from registry_server import digest_of

from boxlite._images.blobs import BlobStore
from boxlite._images.descriptor import Descriptor
from boxlite._images.endpoints import RegistryOptions, endpoints_of, is_loopback, objection
from boxlite._images.retry import RETRY_AFTER_MAX, Patience, parse_retry_after


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """A store with nothing in it."""
    return BlobStore(tmp_path / "images")


def describe(data: bytes) -> Descriptor:
    """Return the descriptor of some content."""
    return Descriptor(media_type="", digest=digest_of(data), size=len(data))


def test_blob_is_kept(store: BlobStore) -> None:
    """Put in, found, read, removed."""
    digest = store.add(b"content")

    assert digest == digest_of(b"content")
    assert store.has(describe(b"content"))
    assert store.read(describe(b"content"), 7) == b"content"
    assert list(store.digests()) == [digest]
    assert list(store.partials.iterdir()) == []
    assert store.remove(digest) == 7
    assert store.remove(digest) == 0
    assert list(store.digests()) == []


def test_nothing_is_made_by_looking(store: BlobStore) -> None:
    """A store that is empty need not exist."""
    assert not store.has(describe(b"content"))
    assert list(store.digests()) == []
    assert store.sweep() == 0
    assert not store.root.exists()


def test_blob_of_another_size_is_not_it(store: BlobStore) -> None:
    """What a file system lost must not be taken for a layer."""
    store.path(store.add(b"content")).write_bytes(b"cont")

    assert not store.has(describe(b"content"))
    with pytest.raises(ValueError, match="has not the size"):
        store.read(describe(b"content"), 100)


def test_large_blob_is_not_read(store: BlobStore) -> None:
    """Who reads has a limit."""
    store.add(b"content")

    with pytest.raises(ValueError, match="more than 6 bytes"):
        store.read(describe(b"content"), 6)


@pytest.mark.parametrize("digest", ["", "sha256:..", "sha256:" + "A" * 64, "../" + "a" * 64])
def test_digest_is_checked_before_it_is_a_path(store: BlobStore, digest: str) -> None:
    """It is from anybody's manifest."""
    for use in (store.path, store.partial, store.remove):
        with pytest.raises(ValueError, match="not a sha256 digest"):
            use(digest)


def test_name_comes_after_the_content(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the machine at any point leaves a whole blob, or none."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(fd: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def record_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    store.add(b"first")
    monkeypatch.setattr("os.fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    digest = store.add(b"content")

    assert re.fullmatch(rf"sync {digest[7:]}\.\w{{16}}", done[0])
    assert done[1:] == ["rename", "sync sha256"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.rename", "os.fchmod"])
def test_failure_leaves_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A full disk does not fill up with what is not whole."""
    store.add(b"first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space"):
        store.add(b"content")
    assert set(os.listdir("/proc/self/fd")) == before
    assert list(store.partials.iterdir()) == []
    assert list(store.digests()) == [digest_of(b"first")]


def test_link_in_the_place_of_a_partial_file_is_not_followed(
    store: BlobStore, tmp_path: Path
) -> None:
    """It would publish what is elsewhere."""
    (tmp_path / "other").write_bytes(b"other")
    partial = store.partial(digest_of(b"content"))
    partial.symlink_to(tmp_path / "other")

    with pytest.raises(OSError, match="symbolic link"):
        store.publish(digest_of(b"content"), partial)


def test_sweep_removes_what_is_not_whole(store: BlobStore) -> None:
    """And nothing else."""
    store.add(b"content")
    store.partial(digest_of(b"other")).write_bytes(b"oth")

    assert store.sweep() == 3
    assert list(store.partials.iterdir()) == []
    assert list(store.digests()) == [digest_of(b"content")]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("9" * 1000, None),
        ("Wed, 99 Oct 99999 07:28:30 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds or a date; anything else is none."""
    now = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)

    assert parse_retry_after(value, now=now) == seconds


def test_waiting_grows_and_is_bounded() -> None:
    """Twice as long each time, half of it at random, and never longer than a minute."""
    patience = Patience(backoff=1.0)

    for failures, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (20, RETRY_AFTER_MAX)):
        delays = [patience.delay(failures, None) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest
    assert patience.delay(1, 30.0) == 30.0
    assert patience.delay(1, 1e9) == RETRY_AFTER_MAX


@pytest.mark.parametrize(
    ("registry", "origin"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.8.8.8", "http://127.8.8.8"),
        ("[::1]", "http://[::1]"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[2001:db8::1]:5000", "https://[2001:db8::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("insecure.example", "http://insecure.example"),
        ("insecure.example:5000", "https://insecure.example:5000"),
        ("localhost.example:5000", "https://localhost.example:5000"),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(registry: str, origin: str) -> None:
    """And who is named for it, with its port."""
    options = RegistryOptions(insecure=frozenset({"insecure.example"}))
    (endpoint,) = endpoints_of(registry, options)

    assert endpoint.origin == origin


def test_mirrors_come_first() -> None:
    """In their order, and for their registry alone."""
    options = RegistryOptions(mirrors={"docker.io": ("one.example", "localhost:5000")})

    assert [each.origin for each in endpoints_of("docker.io", options)] == [
        "https://one.example",
        "http://localhost:5000",
        "https://registry-1.docker.io",
    ]
    assert len(endpoints_of("ghcr.io", options)) == 1


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        (("https", "any.example", None), True),
        (("https", "", None), False),
        (("http", "any.example", None), False),
        (("http", "127.0.0.1", 80), True),
        (("http", "::1", None), True),
        (("http", "insecure.example", None), True),
        (("http", "insecure.example", 5000), False),
        (("http", "other.example", 5000), True),
        (("file", "", None), False),
    ],
)
def test_objection(url: tuple[str, str, int | None], is_allowed: bool) -> None:
    """What redirects may lead to."""
    options = RegistryOptions(insecure=frozenset({"insecure.example", "other.example:5000"}))

    assert (objection(*url, options) == "") == is_allowed


def test_loopback_by_name() -> None:
    """Only what is one for certain."""
    assert [is_loopback(host) for host in ("LOCALHOST", "127.1.2.3", "::1")] == [True] * 3
    assert not any(map(is_loopback, ("localhost.", "127.1", "0", "::2", "", "a.localhost")))


def test_lazy_imports() -> None:
    """Whoever pulls nothing does not pay for httpx."""
    program = (
        "import sys, boxlite._images.reference, boxlite._images.blobs, boxlite._images.config,"
        " boxlite._images.endpoints, boxlite._images.credentials;"
        " print(*sorted(set(sys.modules) & {'httpx', 'zstandard', 'ssl'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)

    assert b"httpx" not in done.stdout
    assert b"zstandard" not in done.stdout
