"""What is said about samples, and the turns in which two trees are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import TURNS, Scenario, Series, Summary, compare, table
from benchmarks.scenarios import SCENARIOS


async def nothing(_rounds: int) -> Series:
    """Measure nothing."""
    return {}


SCENARIO = Scenario(name="it", what="how it goes", run=nothing, rounds=4)


def test_a_summary_is_the_median_and_the_middle_half() -> None:
    """In whatever order the samples come."""
    assert Summary.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(middle=3, low=2, high=4, count=5)
    assert Summary.of([7.0]) == Summary(middle=7, low=7, high=7, count=1)


def test_the_table_has_ratios_to_the_baseline_and_between_trees() -> None:
    """A series that a tree could not give is said to be missing."""
    text = table(
        SCENARIO,
        {"floor": [0.010, 0.010], "ours": [0.013, 0.015], "peer": []},
        {"floor": [0.010], "ours": [0.028]},
    )
    title, floor, ours, peer = text.splitlines()

    assert title == "it: how it goes"
    assert "10.00 ms" in floor
    assert "x1.00" in floor
    assert "14.00 ms" in ours
    assert "[13.00 .. 15.00]" in ours
    assert "x1.40  n=2" in ours
    assert "head/base 0.500" in ours
    assert peer.endswith("not measured")


@pytest.mark.parametrize(("rounds", "parts"), [(7, [3, 2, 2]), (2, [1, 1])])
def test_two_trees_are_measured_in_turns(rounds: int, parts: list[int]) -> None:
    """So that what changes on the machine meanwhile concerns both."""
    calls: list[tuple[Path, int]] = []

    def run(name: str, rounds: int, tree: Path) -> Series:
        assert name == "it"
        calls.append((tree, rounds))
        return {"samples": [float(rounds)] * rounds}

    base, head = Path("base"), Path("head")
    found = compare(run, "it", rounds, [base, head])

    assert calls == [(tree, part) for part in parts for tree in (base, head)]
    assert len(parts) <= TURNS
    assert [len(series["samples"]) for series in found] == [rounds, rounds]


def test_one_tree_is_measured_at_once() -> None:
    """There is nothing to take turns with."""
    calls: list[int] = []

    def run(_name: str, rounds: int, _tree: Path) -> Series:
        calls.append(rounds)
        return {"samples": [1.0]}

    assert compare(run, "it", 7, [Path("head")]) == [{"samples": [1.0]}]
    assert calls == [7]


def test_every_scenario_is_found_by_its_name() -> None:
    """And knows how often it is to run."""
    assert all(name == scenario.name for name, scenario in SCENARIOS.items())
    assert all(scenario.rounds > 0 for scenario in SCENARIOS.values())
