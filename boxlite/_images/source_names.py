"""What the images of a source are called, by what the source says.

Sources: the OCI image specification 1.1, "Annotations", and its image layout, "index.json
file"; ``io.containerd.image.name`` is what containerd, BuildKit and Docker write.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from boxlite._errors import InvalidOptionError

from .document import take_object, take_text
from .reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FULL_NAME: Final = "io.containerd.image.name"
_NAME: Final = "org.opencontainers.image.ref.name"
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_ENDINGS: Final = (".tar", ".gz", ".tgz", ".zst", ".tzst", ".xz", ".txz", ".oci")
_FIELDS_MAX: Final = 1000


def title_of(source: Path) -> str:
    """Return what a source is called: its name, of a file without what says its format."""
    title = os.path.basename(os.path.abspath(source))  # noqa: PTH100, PTH119 - links stay
    while title.endswith(_ENDINGS):
        title = title.rpartition(".")[0]
    return title


def name_of_entry(item: dict[str, Any], title: str) -> Reference | None:
    """Return what an entry of a layout's index is called, or None if that is no name.

    Args:
        item: The entry.
        title: What a tag alone is a tag of.

    Raises:
        ValueError: Its annotations are none.
    """
    annotations = take_object(item, "annotations", max_entries=_FIELDS_MAX)
    full = take_text(annotations, _FULL_NAME)
    if full and (found := parse_name(full)):
        return found
    name = take_text(annotations, _NAME)
    if _TAG.fullmatch(name):
        return parse_name(f"{title}:{name}")
    return parse_name(name)


def names_of_tags(tags: Iterable[str]) -> tuple[Reference, ...]:
    """Return the names among the tags of a ``docker save`` archive, each once."""
    found = [parse_name(tag) for tag in tags]
    # Docker never writes a digest there: it would be a claim that nothing proves.
    return tuple(dict.fromkeys(each for each in found if each and each.digest is None))


def parse_name(text: str) -> Reference | None:
    """Return the reference that a text is, or None if it is none."""
    try:
        return Reference.parse(text)
    except InvalidOptionError:
        return None
