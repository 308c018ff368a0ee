"""How long `bend report` takes, as a process from a cold start.

    uv run python tests/benchmarks/bench_report.py STORE [--runs 5]

STORE holds a committed evaluation, as `bend run` leaves one. Prints a JSON line: medians of wall
and CPU seconds of the process, and bytes of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(store: str, output: str) -> tuple[float, float]:
    """Wall and CPU seconds of one report."""
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "bend_ray", "report", "--store", store, "--output", output]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system
    return time.perf_counter() - started, cpu - before.children_user - before.children_system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        took = [measure(arguments.store, output) for _ in range(arguments.runs)]
        size = Path(output, "report.html").stat().st_size
    wall, cpu = (statistics.median(each) for each in zip(*took, strict=True))
    print(json.dumps({"case": "report", "wall_s": wall, "cpu_s": cpu, "html_bytes": size}))


if __name__ == "__main__":
    main()
