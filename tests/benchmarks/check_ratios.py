"""Whether benchmarks are as far ahead as they were: ratios, never seconds, against a baseline.

    uv run --group bench python tests/benchmarks/bench_fitting.py --network mlp >> new.jsonl
    uv run python tests/benchmarks/check_ratios.py new.jsonl             # ends with 1 if one fell
    uv run python tests/benchmarks/check_ratios.py new.jsonl --update    # the new baseline

Run by hand or nightly, of any of the benchmarks whose lines have ``ratios``. A ratio may be as
small as ``--share`` of its baseline: this is what a shared machine can tell. Cases that the
baseline does not have are told and do not count; ratios of cases that were not run are not missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.jsonl")
NAMES = ("case", "network", "models", "members", "batch", "task", "parameters", "shards")
"""What tells one case from another."""

Ratios = dict[tuple[Any, ...], dict[str, float]]


def read(path: Path) -> Ratios:
    """The ratios of every case in a file of JSON lines; of a case that was run twice, the last."""
    found: Ratios = {}
    for line in path.read_text().splitlines():
        case = json.loads(line)
        if "ratios" in case:
            found[tuple(case.get(name) for name in NAMES)] = case["ratios"]
    return found


def fallen(new: Ratios, old: Ratios, share: float) -> list[str]:
    """A line for every ratio below ``share`` of what it was."""
    told = []
    for key, ratios in new.items():
        for name, ratio in ratios.items():
            before = old.get(key, {}).get(name)
            if before is not None and ratio < share * before:
                case = " ".join(str(part) for part in key if part is not None)
                told.append(f"{case}: {name} was {before}, is {ratio}")
    return told


def main() -> None:
    """Compare and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    new, old = read(arguments.results), read(BASELINE) if BASELINE.exists() else {}
    if arguments.update:
        lines = [
            json.dumps(
                {name: part for name, part in zip(NAMES, key, strict=True) if part is not None}
                | {"ratios": ratios}
            )
            for key, ratios in (old | new).items()
        ]
        BASELINE.write_text("\n".join(lines) + "\n")
        print(f"{len(new)} cases written, {len(old | new)} in all")
        return
    told = fallen(new, old, arguments.share)
    print("\n".join(told) or "no ratio has fallen")
    print(f"{len(set(new) & set(old))} cases compared, {len(set(new) - set(old))} without baseline")
    sys.exit(bool(told))


if __name__ == "__main__":
    main()
