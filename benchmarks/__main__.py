"""Run the scenarios that are named, or all; print medians, keep the raw numbers.

Every scenario measures a baseline in the same run, so its figure is also a
ratio that means something on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median, quantiles

import trio

from . import death

RESULTS = Path(__file__).parent / "results"
SCENARIOS = {
    "race-death": death.race_death,
    "vm-death": death.vm_death,
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], help="default: all")
    parser.add_argument("--rounds", type=int, help="how often; each scenario has its own default")
    arguments = parser.parse_args()
    report = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "scenarios": {},
    }
    for name in arguments.scenario or SCENARIOS:
        series = trio.run(SCENARIOS[name], arguments.rounds)
        baseline = next(iter(series.values()))
        print(f"{name}")
        for label, samples in series.items():
            low, *_, high = quantiles(samples, n=20)
            ratio = median(samples) / median(baseline)
            print(
                f"  {label:44} median {median(samples) * 1e3:8.2f} ms   5 % {low * 1e3:8.2f}"
                f"   95 % {high * 1e3:8.2f}   x{ratio:.2f}   n={len(samples)}"
            )
        report["scenarios"][name] = series  # type: ignore[index]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    path.write_text(json.dumps(report, indent=1))
    print(f"raw numbers in seconds: {path}")


if __name__ == "__main__":
    main()
