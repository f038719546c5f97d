"""``python -m benchmarks.child SCENARIO ROUNDS``: measure, and print the samples as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

import trio

from .scenarios import SCENARIOS


def main(name: str, rounds: str) -> None:
    """Measure one scenario."""
    json.dump(trio.run(partial(SCENARIOS[name].run, int(rounds))), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
