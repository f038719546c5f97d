"""The images of an OCI layout, in a directory or an archive.

Sources: the OCI image specification 1.1, "Image Layout". Its ``index.json`` lists images,
or the manifests of one image for several platforms, or both: what has the same name, or
has none and is for different platforms, is one image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from .config import CONFIG_BYTES_MAX
from .document import parse_object, take_list
from .manifest import ENTRIES_MAX, MANIFEST_BYTES_MAX, Index, Manifest, parse_manifest
from .source_found import Documents, Found, blob_name, config_for, merged, understood
from .source_names import name_of_entry
from .source_piece import SourceError

if TYPE_CHECKING:
    from .descriptor import Descriptor
    from .manifest import Entry
    from .platform import Platform
    from .reference import Reference
    from .source_piece import Files, Intake

LAYOUT_NAME: Final = "oci-layout"
INDEX_NAME: Final = "index.json"

_VERSION: Final = "1.0.0"
_LAYOUT_BYTES_MAX: Final = 4096
#: An index may list indexes, and those others; as for what comes from registries.
_DEPTH_MAX: Final = 3


def find_in_layout(
    documents: Documents, platform: Platform, title: str, there: list[str]
) -> list[Found]:
    """Return the images of a layout that are for a platform, in the layout's order.

    Args:
        documents: The layout.
        platform: The platform.
        title: What it is called: the name of an image of which only a tag is known.
        there: Gets the platforms of what is for others.

    Raises:
        SourceError: It is no layout, or something in it is missing or broken.
        UnreadableError: It cannot be read.
    """
    if documents.files.has(LAYOUT_NAME):
        _check_version(documents.read(LAYOUT_NAME, _LAYOUT_BYTES_MAX))
    data = documents.read(INDEX_NAME, MANIFEST_BYTES_MAX)
    index = understood(lambda: parse_manifest(data))
    if not isinstance(index, Index):
        raise SourceError(f"its {INDEX_NAME} is no index")
    search = _Search(documents, platform, there)
    images = [search.image(group, name) for name, group in _groups(data, index, title)]
    # One that has several names is listed once for each.
    return merged([image for image in images if image is not None])


def _check_version(data: bytes) -> None:
    document = understood(
        lambda: parse_object(data, f"its {LAYOUT_NAME}", max_bytes=_LAYOUT_BYTES_MAX)
    )
    version = document.get("imageLayoutVersion")
    if version != _VERSION:
        raise SourceError(f"it is a layout of version {ascii(version)[:60]}, and not {_VERSION}")


def _groups(data: bytes, index: Index, title: str) -> list[tuple[Reference | None, Index]]:
    """Return what is one image each: its name, and an index of what it is for each platform."""
    entries = {entry.descriptor: entry for entry in index.entries}
    groups: dict[Reference | None, list[Entry]] = {}
    for descriptor, name in understood(lambda: _names(data, entries, title)):
        groups.setdefault(name, []).append(entries[descriptor])
    found: list[tuple[Reference | None, Index]] = []
    for name, group in groups.items():
        alone = len({entry.descriptor for entry in group}) == 1
        platforms = {entry.platform for entry in group}
        if alone:
            found.append((name, attrs.evolve(index, entries=(group[0],))))
        elif None not in platforms and (name is not None or len(platforms) == len(group)):
            found.append((name, attrs.evolve(index, entries=tuple(group))))
        elif name is None:
            found += ((None, attrs.evolve(index, entries=(entry,))) for entry in group)
        else:
            raise SourceError(f"two images in it are called {name.familiar}")
    return found


def _names(
    data: bytes, entries: dict[Descriptor, Entry], title: str
) -> list[tuple[Descriptor, Reference | None]]:
    """Return the images that an index lists, with their names."""
    document = parse_object(data, f"its {INDEX_NAME}", max_bytes=MANIFEST_BYTES_MAX)
    by_digest = {(each.digest, each.media_type): each for each in entries}
    found = []
    items: list[dict[str, Any]] = take_list(document, "manifests", max_entries=ENTRIES_MAX)
    for item in items:
        # What is missing there is no image.
        descriptor = by_digest.get((item["digest"], item.get("mediaType") or ""))
        if descriptor is not None:
            found.append((descriptor, name_of_entry(item, title)))
    return found


@attrs.frozen
class _Search:
    documents: Documents
    platform: Platform
    there: list[str]

    def image(self, index: Index, name: Reference | None) -> Found | None:
        """Return the image that an index has for the platform, or None if there is none."""
        path: list[str] = []
        manifest = self._descend(index, path)
        if manifest is None:
            return None
        config = self.documents.read_blob(manifest.config, CONFIG_BYTES_MAX)
        if config_for(config, len(manifest.layers), self.platform, self.there) is None:
            return None
        if name is not None and name.digest is not None and name.digest not in path:
            raise SourceError(f"an image in it is called {name.familiar}, and is another one")
        return Found(
            identity=manifest.digest,
            names=(name,) if name is not None else (),
            digests=tuple(path),
            config_digest=manifest.config.digest,
            take=partial(_take, self.documents.files, manifest),
        )

    def _descend(self, index: Index, path: list[str]) -> Manifest | None:
        for _ in range(_DEPTH_MAX + 1):
            present = self._present(index)
            chosen = present.choose(self.platform)
            if chosen is None:
                self.there.extend(present.platforms)
                return None
            path.append(chosen.digest)
            data = self.documents.read_blob(chosen, MANIFEST_BYTES_MAX)
            parsed = understood(partial(parse_manifest, data))
            if isinstance(parsed, Manifest):
                return parsed
            index = parsed
        raise SourceError(f"its indexes lead to others more than {_DEPTH_MAX} times")

    def _present(self, index: Index) -> Index:
        """Return an index of what is there: a layout need not have all platforms."""
        entries = [
            entry
            for entry in index.entries
            if self.documents.files.has(blob_name(entry.descriptor))
        ]
        # If there is nothing, what is missing is named when it is read.
        return attrs.evolve(index, entries=tuple(entries)) if entries else index


def _take(files: Files, manifest: Manifest, intake: Intake) -> Descriptor:
    most = intake.limits.image_bytes
    if manifest.size > most:
        raise SourceError(f"an image in it has {manifest.size} bytes, more than {most}")
    for piece in {
        each.digest: each for each in (manifest.config, *manifest.layers, manifest.descriptor)
    }.values():
        intake.take(files, blob_name(piece), piece)
    return manifest.descriptor
