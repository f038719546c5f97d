"""How far an image is, as somebody who waits for it sees it."""

from __future__ import annotations

import io

import pytest
from fake_images import EVENTS, OTHER_LAYER, layer, root
from rich.console import Console

import boxlite
from boxlite.cli.image_bars import Bars, open_bars
from boxlite.cli.image_progress import image_progress


def terminal(*, quiet: bool = False) -> tuple[Console, io.StringIO]:
    """Return a console, and what is written to it."""
    out = io.StringIO()
    # A terminal's size and kind are the environment's, too.
    environment = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    return Console(
        file=out, color_system=None, force_terminal=True, quiet=quiet, _environ=environment
    ), out


def test_a_layer_that_comes_has_a_bar_until_it_is_a_line() -> None:
    """At any time as many bars as there is going on, and then one for the root."""
    console, out = terminal()
    with open_bars(console) as progress:
        bars = Bars(progress, "pulling alpine:3.20")
        shown = []
        for event in [None, *EVENTS]:
            if event is not None:
                bars(event)
            shown.append(
                [(task.description, task.completed, task.total) for task in progress.tasks]
            )

    coming = ("layer abababababab", 5 << 20)
    assert shown == [
        [("pulling alpine:3.20", 0, None)],
        [("pulling alpine:3.20", 0, None)],
        [],
        [(coming[0], 0, coming[1])],
        [(coming[0], 2 << 20, coming[1])],
        [],
        [("unpacking alpine:3.20", 1 << 20, 10 << 20)],
        [("unpacking alpine:3.20", 10 << 20, 10 << 20)],
        [("making the root of alpine:3.20", 5 << 20, 10 << 20)],
    ]
    text = out.getvalue()
    assert "layer cdcdcdcdcdcd: 700 B, was there\n" in text
    assert "layer abababababab: 5.0 MiB\n" in text


def test_layers_that_come_together_have_a_bar_each() -> None:
    """A layer that begins anew goes back."""
    console, _ = terminal()
    with open_bars(console) as progress:
        bars = Bars(progress, "pulling")
        bars(layer("downloading", 3 << 20))
        bars(layer("downloading", 0, 0, digest=OTHER_LAYER))
        bars(layer("downloading", 1 << 20))
        progress.refresh()

        assert [task.completed for task in progress.tasks] == [1 << 20, 0]


def test_the_next_image_has_a_bar_of_its_own() -> None:
    """An archive may have several."""
    console, _ = terminal()
    with open_bars(console) as progress:
        bars = Bars(progress, "reading images.tar")
        bars(root("pack", 10 << 20))
        bars(root("pack", 1 << 20, 2 << 20, name="other:1"))

        assert [(task.description, task.total) for task in progress.tasks] == [
            ("making the root of other:1", 2 << 20)
        ]


def test_a_long_name_gives_way_to_the_amounts() -> None:
    """On 80 columns, each bar is a line and says how much there is."""
    console, out = terminal()
    console.width = 80
    with open_bars(console) as progress:
        bars = Bars(progress, "pulling")
        bars(root("pack", 1000 << 20, 1023 << 20, name="registry.example/" + "a" * 100))
        out.truncate(0)
        progress.refresh()

        # The first of it moves the cursor up.
        drawn = out.getvalue().rpartition("\x1b[2K")[2]
    assert drawn.startswith("making the root of registry.ex… ")
    assert "1,000.0/1,023.0 MiB" in drawn
    assert "\n" not in drawn


def test_the_bars_are_drawn_and_are_gone_at_the_end() -> None:
    """Also when it failed: what comes next, an error perhaps, has the line to itself."""
    console, out = terminal()

    with pytest.raises(boxlite.ImageNotFoundError):
        with image_progress(console, "pulling [::1]:5000/[bold]x") as on_progress:
            assert isinstance(on_progress, Bars)
            on_progress(layer("downloading", 2 << 20))
            on_progress._progress.refresh()
            raise boxlite.ImageNotFoundError("x", "there is none")

    text = out.getvalue()
    assert "pulling [::1]:5000/[bold]x" in text
    assert "layer abababababab" in text
    assert "2.0/5.0 MiB" in text
    # The cursor is shown again, and the line erased.
    assert text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
def test_lines_are_for_what_has_no_cursor(environment: dict[str, str]) -> None:
    """A pipe, and a terminal that only knows the next line."""
    out = io.StringIO()
    is_terminal = "TERM" in environment
    console = Console(file=out, force_terminal=is_terminal, _environ=environment, width=20)
    with image_progress(console, "pulling " + "x" * 50) as on_progress:
        assert on_progress is not None
        for event in EVENTS:
            on_progress(event)

    assert out.getvalue().splitlines() == [
        "pulling " + "x" * 50,
        "layer cdcdcdcdcdcd: 700 B, was there",
        "layer abababababab: 5.0 MiB",
        "unpacking alpine:3.20",
        "making the root of alpine:3.20",
    ]


def test_a_quiet_console_is_told_nothing() -> None:
    """Not even a cursor that is hidden."""
    console, out = terminal(quiet=True)
    with image_progress(console, "pulling") as on_progress:
        assert on_progress is None

    assert out.getvalue() == ""
