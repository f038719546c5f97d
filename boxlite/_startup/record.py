"""What a detached box is, in a file, so that another program can use it.

It holds the values of environment variables and the guest's nonce, so only its owner
may read it, in a directory that only its owner may enter.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._errors import HostError, InvalidOptionError
from boxlite._evidence import read_excerpt
from boxlite._images.record import image_from_record, image_to_record
from boxlite._options import BoxOptions
from boxlite._volume import Volume

if TYPE_CHECKING:
    from pathlib import Path

    from boxlite._images.image import Image
    from boxlite._layout import BoxLayout

_NONCE: Final = re.compile("[0-9a-f]{32}")
_VERSION: Final = 3
#: An environment can be large; no larger than the kernel takes (ARG_MAX, execve(2)).
_FILE_BYTES: Final = 4 << 20


@attrs.frozen(kw_only=True)
class Record:
    """What is written down of a box.

    Args:
        options: What it was asked to be.
        nonce: What its guest knows its hosts by.
        image: Its image; None for the built-in one.
    """

    options: BoxOptions
    nonce: str
    image: Image | None = None


def write_record(layout: BoxLayout, record: Record) -> None:
    """Write down what a box is.

    Raises:
        OSError: It cannot be written.
    """
    options = record.options
    fields = attrs.asdict(options)
    fields["env"] = dict(options.env)
    for volume in fields["volumes"]:
        volume["source"] = str(volume["source"])
    image = None if record.image is None else image_to_record(record.image)
    text = json.dumps(
        {"version": _VERSION, "options": fields, "nonce": record.nonce, "image": image}
    )
    draft = layout.root / "box.json.new"
    draft.unlink(missing_ok=True)  # Of a program that was killed while it wrote.
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii") as file:  # noqa: PTH123 - it has a descriptor
        file.write(text)
    draft.rename(layout.record)


def read_record(layout: BoxLayout, roots: Path) -> Record | None:
    """Return what a box is, or None if it was not detached.

    Args:
        layout: The box's files.
        roots: Where the roots of images are.

    Raises:
        HostError: It is written down in a way that this version does not know.
    """
    excerpt = read_excerpt(layout.record, head=_FILE_BYTES, tail=0)
    if excerpt.size is None and not excerpt.problem:
        return None
    try:
        record = json.loads(excerpt.whole or b"")
        if record["version"] != _VERSION:
            raise ValueError(f"version {record['version']!r}")
        nonce = record["nonce"]
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise ValueError("its nonce is none")
        fields, image = record["options"], record["image"]
        fields["volumes"] = [Volume(**volume) for volume in fields["volumes"]]
        fields["rlimits"] = {name: tuple(pair) for name, pair in fields["rlimits"]}
        return Record(
            options=BoxOptions(**fields),
            nonce=nonce,
            image=None if image is None else image_from_record(image, roots),
        )
    except (ValueError, TypeError, KeyError, RecursionError, InvalidOptionError) as exc:
        reason = excerpt.problem or f"{type(exc).__name__}: {exc}"
        raise HostError(
            f"{layout.record} does not say what the box is: {reason[:200]}",
            fix="It was left by another version of boxlite, or damaged.",
        ) from exc
