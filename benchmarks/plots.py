"""Pictures of what was measured: every sample a dot, every median a line."""

from __future__ import annotations

import sys
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .harness import Series

#: The scenarios that are drawn, with the unit of the axis, its scale, and whether it is
#: logarithmic.
_DRAWN = {
    "starts": ("milliseconds", 1e3, True),
    "first-command": ("milliseconds", 1e3, True),
    "memory": ("MiB", 1 / (1 << 20), False),
}


def draw(found: Mapping[str, Series], stem: Path) -> Iterator[Path]:
    """Draw what there is to draw as SVG, and yield the files.

    Args:
        found: The series of each scenario.
        stem: Where to write; the scenario's name and ``.svg`` are added.
    """
    drawn = [name for name in _DRAWN if found.get(name)]
    if not drawn:
        return
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only the extra "bench" has it
    except ImportError:
        print("no pictures: pip install 'boxlite[bench]'", file=sys.stderr)
        return
    for name in drawn:
        unit, scale, logarithmic = _DRAWN[name]
        series = {label: samples for label, samples in found[name].items() if samples}
        figure = Figure(figsize=(9, 0.6 * len(series) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        for row, samples in enumerate(series.values()):
            scaled = [sample * scale for sample in samples]
            axes.plot(scaled, [row] * len(scaled), "o", alpha=0.35, markersize=5)
            axes.plot([median(scaled)] * 2, [row - 0.35, row + 0.35], color="black")
            axes.annotate(
                f"{median(scaled):.1f}", (median(scaled), row - 0.38), ha="center", fontsize=8
            )
        axes.set_yticks(range(len(series)), list(series))
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.set_xscale("log" if logarithmic else "linear")
        axes.grid(axis="x", alpha=0.3)
        path = stem.with_name(f"{stem.name}-{name}.svg")
        figure.savefig(path)
        yield path
