"""A small answer kept in a file, with the question it belongs to.

It saves time and carries nothing that cannot be found out again. So a file that
is missing, damaged or about something else is simply no answer, and one that
cannot be written is no failure.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from boxlite._evidence import read_excerpt

_FILE_BYTES: Final = 64 << 10


def recall(file: Path, question: object) -> object | None:
    """Return the answer that was kept for a question, or None.

    Args:
        file: Where answers of this sort are kept.
        question: What it must have been kept for: anything that JSON can say.
    """
    try:
        kept = json.loads(read_excerpt(file, head=_FILE_BYTES, tail=0).whole or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(kept, dict) or kept.get("question") != question:
        return None
    answer: object = kept.get("answer")
    return answer


def remember(file: Path, question: object, answer: object) -> None:
    """Keep the answer to a question, in place of an earlier one. Atomic.

    Nothing is kept if the file's directory is not there or cannot be written.
    """
    text = json.dumps({"question": question, "answer": answer})
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False
        ) as new,
    ):
        try:
            new.write(text)
            new.flush()
            Path(new.name).replace(file)
        except BaseException:
            Path(new.name).unlink()
            raise
