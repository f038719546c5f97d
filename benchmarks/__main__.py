"""Run the scenarios that are named, or all; print medians, keep the raw numbers and plots."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from .harness import HEAD, Series, compare, measure, table, tree_of
from .plots import draw
from .scenarios import SCENARIOS


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help="default: all")
    parser.add_argument("--rounds", type=int, help="how often; each scenario has its own default")
    parser.add_argument("--base", metavar="REV", help="measure this revision too, in turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    report: dict[str, object] = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "head": _describe("HEAD"),
        "base": arguments.base and _describe(arguments.base),
    }
    found: dict[str, Series] = {}
    found_base: dict[str, Series] = {}
    with ExitStack() as stack:
        trees = [HEAD]
        if arguments.base is not None:
            trees.insert(0, stack.enter_context(tree_of(arguments.base)))
        for name in arguments.scenario or SCENARIOS:
            scenario = SCENARIOS[name]
            rounds = arguments.rounds or scenario.rounds
            *base, head = compare(_measure, name, rounds, trees)
            print(table(scenario, head, base[0] if base else None), flush=True)
            found[name] = head
            if base:
                found_base[name] = base[0]
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / time.strftime("%Y%m%dT%H%M%S")
    report |= {"scenarios": found, "base scenarios": found_base}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1))
    print(f"raw numbers, in seconds and bytes: {stem.with_suffix('.json')}")
    for picture in draw(found, stem):
        print(f"picture: {picture}")


def _measure(name: str, rounds: int, tree: Path) -> Series:
    return measure(name, rounds, tree=tree)


def _describe(revision: str) -> str:
    command = ["git", "-C", str(HEAD), "describe", "--always", "--dirty", "--abbrev=12"]
    if revision != "HEAD":
        command = ["git", "-C", str(HEAD), "rev-parse", "--short=12", revision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
