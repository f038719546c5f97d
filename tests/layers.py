"""Layers and images for tests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Literal

import attrs

from boxlite._images.descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Compression = Literal["none", "gzip", "zstd"]

#: When everything in these layers changed, unless a test says otherwise.
MTIME = 1_600_000_000

_LAYER = "application/vnd.oci.image.layer.v1.tar"


@attrs.frozen(kw_only=True)
class Part:
    """A member of a layer: its header, and its data."""

    info: tarfile.TarInfo
    data: bytes = b""


def _part(
    name: bytes,
    flag: bytes,
    data: bytes = b"",
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    mtime: float = MTIME,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: dict[bytes, bytes] | None = None,
    records: dict[str, str] | None = None,
) -> Part:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type, info.size, info.mode = flag, len(data), mode
    info.uid, info.gid, info.mtime = uid, gid, mtime
    info.linkname = os.fsdecode(target)
    info.devmajor, info.devminor = device
    info.pax_headers = dict(records or {})
    for key, value in (xattrs or {}).items():
        info.pax_headers["SCHILY.xattr." + os.fsdecode(key)] = os.fsdecode(value)
    return Part(info=info, data=data)


def file(name: bytes, data: bytes = b"data", mode: int = 0o644, **of: object) -> Part:
    """Return a file."""
    return _part(name, tarfile.REGTYPE, data, mode=mode, **of)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **of: object) -> Part:
    """Return a directory."""
    return _part(name, tarfile.DIRTYPE, mode=mode, **of)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **of: object) -> Part:
    """Return a symbolic link."""
    return _part(name, tarfile.SYMTYPE, mode=0o777, target=target, **of)  # type: ignore[arg-type]


def hard(name: bytes, target: bytes) -> Part:
    """Return a hard link."""
    return _part(name, tarfile.LNKTYPE, mode=0o644, target=target)


def device(name: bytes, flag: bytes, major: int, minor: int, mode: int = 0o600) -> Part:
    """Return a device, ``tarfile.CHRTYPE`` or ``BLKTYPE``."""
    return _part(name, flag, mode=mode, device=(major, minor))


def fifo(name: bytes, **of: object) -> Part:
    """Return a fifo."""
    return _part(name, tarfile.FIFOTYPE, mode=0o622, **of)  # type: ignore[arg-type]


def white(name: bytes) -> Part:
    """Return a whiteout of a path, or of what is in a directory: ``name/.wh..opq``."""
    above, slash, last = name.rpartition(b"/")
    return file(above + slash + b".wh." + last, b"")


def opaque(name: bytes = b"") -> Part:
    """Return the whiteout of all that lower layers have in a directory."""
    return file((name + b"/" if name else b"") + b".wh..wh..opq", b"")


def layer(*parts: Part, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """Return the tar of a layer, in one of the formats of :mod:`tarfile`."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for part in parts:
            tar.addfile(part.info, io.BytesIO(part.data))
    return out.getvalue()


def compressed(data: bytes, compression: Compression) -> bytes:
    """Return data, compressed."""
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def digest_of(data: bytes) -> str:
    """Return the digest of some data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@attrs.frozen(kw_only=True)
class Image:
    """An image on the disk: its layers, and the digests of what is in them."""

    layers: Sequence[tuple[Descriptor, Path]]
    diff_ids: Sequence[str]


def make_image(
    place: Path, layers: Sequence[bytes], compression: Compression | Sequence[Compression] = "gzip"
) -> Image:
    """Write an image as an OCI layout, with the tag ``latest``.

    Args:
        place: The directory to make.
        layers: The tar of each layer, the lowest first.
        compression: How they are stored: all, or each.
    """
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def store(data: bytes, media_type: str) -> Descriptor:
        found = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        (blobs / found.hex).write_bytes(data)
        return found

    how = [compression] * len(layers) if isinstance(compression, str) else list(compression)
    stored = [
        store(compressed(data, each), _LAYER if each == "none" else f"{_LAYER}+{each}")
        for data, each in zip(layers, how, strict=True)
    ]
    diff_ids = [digest_of(data) for data in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _json(
            store(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        ),
        "layers": [_json(each) for each in stored],
    }
    root = store(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    tagged = _json(root) | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Image(layers=[(each, blobs / each.hex) for each in stored], diff_ids=diff_ids)


def _json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
