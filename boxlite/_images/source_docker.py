"""The images of an archive that ``docker save`` wrote, or a tool that imitates it.

Source: the Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset
Format". Since Docker 25 such archives are OCI layouts as well, and their ``manifest.json``
is read for names alone.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from .config import CONFIG_BYTES_MAX
from .descriptor import Descriptor
from .document import check_text, parse_object, take_list, take_texts
from .manifest import ENTRIES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX
from .source_found import Documents, Found, config_for, digest_of, merged, understood
from .source_manifest import LAYER_TYPES, store_made
from .source_names import names_of_tags
from .source_piece import SourceError
from .source_spool import MAGIC_BYTES, compression_of

if TYPE_CHECKING:
    from .platform import Platform
    from .reference import Reference
    from .source_piece import Files, Intake

DOCKER_NAME: Final = "manifest.json"

_PATH_MAX: Final = 256
_TAGS_MAX: Final = 1000
#: What the configuration's file is called, by Docker, before and after 25, and by Kaniko.
_CONFIG_NAME: Final = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?")


@attrs.frozen(kw_only=True)
class _Saved:
    """One entry of ``manifest.json``: names of files, and of the image."""

    config: str
    layers: tuple[str, ...]
    names: tuple[Reference, ...]


def find_in_docker(documents: Documents, platform: Platform, there: list[str]) -> list[Found]:
    """Return the images of a ``docker save`` archive that are for a platform, in its order.

    Args:
        documents: The archive.
        platform: The platform.
        there: Gets the platforms of what is for others.

    Raises:
        SourceError: Something in it is missing or broken.
        UnreadableError: It cannot be read.
    """
    found = []
    for saved in _entries(documents):
        config = _config(documents, saved)
        parsed = config_for(config, len(saved.layers), platform, there)
        if parsed is not None:
            pairs = tuple(zip(saved.layers, parsed.diff_ids, strict=True))
            found.append(
                Found(
                    identity=digest_of(config),
                    names=saved.names,
                    digests=(),
                    config_digest=digest_of(config),
                    take=partial(_take, documents.files, saved.config, pairs),
                )
            )
    return merged(found)


def with_docker_names(found: list[Found], documents: Documents) -> list[Found]:
    """Return images of a layout with the names that ``docker save`` gave them, if it did.

    Args:
        found: The images.
        documents: The archive that they are in, which has a ``manifest.json``.

    Raises:
        SourceError: Something in it is missing or broken.
        UnreadableError: It cannot be read.
    """
    names: dict[str, tuple[Reference, ...]] = {}
    for saved in _entries(documents):
        # Of other platforms there may be the name alone.
        if saved.names and documents.files.has(saved.config):
            digest = digest_of(_config(documents, saved))
            names[digest] = (*names.get(digest, ()), *saved.names)
    return [attrs.evolve(each, names=names.get(each.config_digest, each.names)) for each in found]


def _entries(documents: Documents) -> list[_Saved]:
    data = documents.read(DOCKER_NAME, MANIFEST_BYTES_MAX)
    return understood(lambda: _parse(data))


def _parse(data: bytes) -> list[_Saved]:
    # It is a list, and what bounds JSON takes objects.
    wrapped = parse_object(
        b'{"images":%s}' % data, f"its {DOCKER_NAME}", max_bytes=MANIFEST_BYTES_MAX + 64
    )
    found = []
    for item in take_list(wrapped, "images", max_entries=ENTRIES_MAX):
        if not isinstance(item, dict):
            raise ValueError(f"its {DOCKER_NAME} has an entry that is no object")
        found.append(_entry(item))
    return found


def _entry(item: dict[str, Any]) -> _Saved:
    return _Saved(
        config=check_text(item.get("Config"), "Config", max_length=_PATH_MAX),
        layers=take_texts(item, "Layers", max_entries=LAYERS_MAX, max_length=_PATH_MAX),
        names=names_of_tags(take_texts(item, "RepoTags", max_entries=_TAGS_MAX)),
    )


def _config(documents: Documents, saved: _Saved) -> bytes:
    data = documents.read(saved.config, CONFIG_BYTES_MAX)
    promised = _CONFIG_NAME.fullmatch(saved.config)
    if promised and digest_of(data) != f"sha256:{promised[1]}":
        raise SourceError(f"the content of {saved.config} is {digest_of(data)}")
    return data


def _take(
    files: Files, config: str, layers: tuple[tuple[str, str], ...], intake: Intake
) -> Descriptor:
    taken: dict[tuple[str, str], Descriptor] = {}
    total = 0
    for name, diff_id in layers:
        if (name, diff_id) in taken:
            continue
        layer = taken[name, diff_id] = _layer(files, name, diff_id, intake)
        total += layer.size
        if total > intake.limits.image_bytes:
            raise SourceError(f"an image in it has more than {intake.limits.image_bytes} bytes")
    with files.open(config) as piece:
        data = piece.read(CONFIG_BYTES_MAX, "its configuration")
    return store_made(intake, data, [taken[pair] for pair in layers])


def _layer(files: Files, name: str, diff_id: str, intake: Intake) -> Descriptor:
    with files.open(name) as piece:
        plain = Descriptor(media_type=LAYER_TYPES["none"], digest=diff_id, size=piece.size)
        if intake.store.has(plain):
            return plain
        compression = compression_of(piece.head(MAGIC_BYTES))
        with intake.copy(piece) as (digest, path):
            # Docker's are never compressed, those of other tools are. What is in them is
            # compared with the diff_id when a root is made of it.
            if digest == diff_id:
                compression = "none"
            elif compression not in ("gzip", "zstd"):
                raise SourceError(f"the content of the layer {diff_id} is {digest}")
            intake.store.publish(digest, path)
        return Descriptor(media_type=LAYER_TYPES[compression], digest=digest, size=piece.size)
