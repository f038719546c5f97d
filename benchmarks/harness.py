"""Scenarios, the child process that runs one, and what is said about the samples.

A scenario measures its own baseline, round by round in turn with the rest, so
its figures are also ratios that mean something on a noisy machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

Series = dict[str, list[float]]

HEAD = Path(__file__).parent.parent
#: Rounds of a comparison are cut into so many turns: base, head, base, head ...
TURNS = 3


@attrs.frozen(kw_only=True)
class Scenario:
    """Something to measure.

    Args:
        name: What the command line calls it.
        what: A line about it.
        run: Measures so many rounds; the first series is the baseline.
        rounds: How many, unless one is told.
        unit: ``"ms"`` for samples in seconds, ``"MiB"`` for samples in bytes, or what the
            samples are in.
    """

    name: str
    what: str
    run: Callable[[int], Awaitable[Series]]
    rounds: int
    unit: str = "ms"


@attrs.frozen(kw_only=True)
class Summary:
    """What is said about a series.

    Args:
        middle: The median.
        low: Where the lowest quarter ends.
        high: Where the highest quarter begins.
        count: How many samples.
    """

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise at least one sample."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            middle=median(ordered),
            low=ordered[round(last * 0.25)],
            high=ordered[round(last * 0.75)],
            count=len(ordered),
        )


def table(scenario: Scenario, series: Series, base: Series | None = None) -> str:
    """Return a table of a scenario's series: median, quartiles, and the ratio to the baseline.

    Args:
        scenario: Whose.
        series: The samples.
        base: Those of the base in a comparison.
    """
    scale = {"ms": 1e3, "MiB": 1 / (1 << 20)}.get(scenario.unit, 1.0)
    first = next((samples for samples in series.values() if samples), [])
    lines = [f"{scenario.name}: {scenario.what}"]
    for label, samples in series.items():
        if not samples:
            lines.append(f"  {label:46} not measured")
            continue
        found = Summary.of(samples)
        line = (
            f"  {label:46} {found.middle * scale:9.2f} {scenario.unit:3}"
            f"  [{found.low * scale:.2f} .. {found.high * scale:.2f}]"
            f"  x{found.middle / median(first):.2f}  n={found.count}"
        )
        if base is not None and base.get(label):
            line += f"  head/base {found.middle / median(base[label]):.3f}"
        lines.append(line)
    return "\n".join(lines)


@contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """Check a revision out next to nothing else, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        git = ["git", "-C", str(HEAD), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(name: str, rounds: int, *, tree: Path = HEAD) -> Series:
    """Run rounds of a scenario in a process that imports ``boxlite`` from a tree.

    The scenarios are always those of this tree. What another one cannot do comes
    back as no series.

    Raises:
        RuntimeError: This tree failed; the child's traceback is on standard error.
    """
    with tempfile.TemporaryDirectory() as directory:
        for package, origin in (("boxlite", tree), ("benchmarks", HEAD)):
            (Path(directory) / package).symlink_to(origin / package)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "benchmarks.child", name, str(rounds)],
            stdout=subprocess.PIPE,
            check=False,
            env={**os.environ, "PYTHONPATH": directory},
        )
    if done.returncode != 0:
        if tree == HEAD:
            raise RuntimeError(f"the scenario {name} failed with {done.returncode}")
        return {}
    series: Series = json.loads(done.stdout)
    return series


def compare(
    run: Callable[[str, int, Path], Series], name: str, rounds: int, trees: Sequence[Path]
) -> list[Series]:
    """Measure a scenario in several trees, in turns, and join what each one gave."""
    joined: list[Series] = [{} for _ in trees]
    turns = min(TURNS, rounds) if len(trees) > 1 else 1
    for turn in range(turns):
        part = rounds // turns + (turn < rounds % turns)
        for series, tree in zip(joined, trees, strict=True):
            for label, samples in run(name, part, tree).items():
                series.setdefault(label, []).extend(samples)
    return joined
