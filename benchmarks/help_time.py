"""How long the command line takes to answer where nothing has to be computed."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMBECK = Path(sys.executable).with_name("limbeck")
RUNS = 15
TARGETS = {"--help": 0.3, "show dmd3": 0.3, "systems": float("inf")}


def seconds(line: str) -> float:
    """From start to exit."""
    began = time.perf_counter()
    subprocess.run([LIMBECK, *line.split()], capture_output=True, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Prints medians."""
    for line, target in TARGETS.items():
        median = statistics.median(seconds(line) for _ in range(RUNS))
        print(f"limbeck {line:10} {median:6.3f} s  (≤ {target}){'' if median <= target else '  too slow'}")


if __name__ == "__main__":
    main()
