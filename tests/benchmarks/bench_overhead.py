"""Where the time of a whole run goes that is not computing.

    uv run python tests/benchmarks/bench_overhead.py [FILE] [--runs 3] [--set a.b=c ...]

Runs ``bend run`` from a cold start into an empty store and reads its lines as they come. Of every
stage: wall seconds, CPU seconds of what it computed (its manifest), and what is left when the
computing is shared out over the processes that did it. Beside them the start of Python and Ray, and
what comes after the last stage: tables, the report, the end of the cluster. Medians over runs, as
a JSON line. Where nothing but Ray is between two lines, the rest is Ray's: starting actors and
Train's workers, importing torch in them, Data's executor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("seeds", "autoencoder", "latents", "generator", "samples", "evaluation")


def one_run(arguments: list[str]) -> dict[str, float]:
    """Seconds of every part of one run."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "bend_ray", "run", *arguments, "--store", store]
        started = time.perf_counter()
        seen: dict[str, float] = {}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                now = time.perf_counter() - started
                words = line.split()
                if words[:2] == ["ray", "starting"]:
                    seen["ray"] = now
                elif words and words[0] in STAGES and "being made" in line:
                    seen.setdefault(f"{words[0]} begins", now)
                elif words and words[0] in STAGES and "done in" in line:
                    seen[f"{words[0]} ends"] = now
                elif line.startswith("done in"):
                    seen["stages end"] = now
        if process.returncode:
            raise SystemExit(f"bend run ended with {process.returncode}")
        whole = time.perf_counter() - started
        parts = {"whole": whole, "python": seen["ray"]}
        parts["ray starts"] = seen["seeds begins"] - seen["ray"]
        computed = dict.fromkeys(STAGES, 0.0)
        for path in Path(store).glob("*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            # The deep ensemble's population is trained within the evaluation.
            stage, ended = manifest["stage"], path.stat().st_mtime
            if stage == "seeds" and ended > first_evaluation_input(store):
                stage = "evaluation"
            computed[stage] += manifest["cost"]["cpu_seconds"]
        for stage in STAGES:
            parts[f"{stage} wall"] = seen[f"{stage} ends"] - seen[f"{stage} begins"]
            parts[f"{stage} cpu"] = computed[stage]
        parts["tables, report, end"] = whole - seen["evaluation ends"]
        parts["computing"] = sum(computed.values())
        return parts


def first_evaluation_input(store: str) -> float:
    """When the samples were committed: populations that are younger belong to the evaluation."""
    return max(path.stat().st_mtime for path in Path(store).glob("samples/*/manifest.json"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    arguments, rest = parser.parse_known_args()
    runs = [one_run(rest) for _ in range(arguments.runs)]
    medians = {part: round(statistics.median(run[part] for run in runs), 2) for part in runs[0]}
    walls = [round(run["whole"], 1) for run in runs]
    print(json.dumps({"case": "overhead", "runs": walls, "seconds": medians}))


if __name__ == "__main__":
    main()
