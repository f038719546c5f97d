"""Give what reads a guest's bytes many more inputs than a test run does.

python tests/fuzz.py [--examples N] [PYTEST ARGUMENTS]
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

FUZZED = [
    *(f"tests/property/test_{name}.py" for name in ("bulk", "convert", "tar")),
    "tests/hostile/test_guest_bytes.py",
]
FLOOD_FRAMES = 10_000_000


def main() -> int:
    """Run the properties; return pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5000, help="inputs of each kind")
    arguments, rest = parser.parse_known_args()
    settings.register_profile(
        "fuzz",
        max_examples=arguments.examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("fuzz")
    os.environ.setdefault("BOXLITE_FLOOD_FRAMES", str(FLOOD_FRAMES))
    return pytest.main(["-q", "--durations=0", *(rest or FUZZED)])


if __name__ == "__main__":
    sys.exit(main())
