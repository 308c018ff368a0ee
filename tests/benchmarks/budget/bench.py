"""What is the best use of the cost of B ordinary trainings? Every method at the same budget.

    cd tests/benchmarks/budget
    BEND_DATASETS=... uv run python bench.py digits.yaml --output digits.jsonl \\
        [--seal digits-test.jsonl] [--repeats 0-9] [--budgets 1,2] [--methods REGEX] [--quality]
    uv run python bench.py --table digits.jsonl
    uv run python bench.py --table digits.jsonl --open-test digits-test.jsonl

One JSON line a (split, budget, method), appended; lines that are there are not made again. It holds
validation figures, by which everything is chosen. Several members vote by the arithmetic mean of
their probabilities and, in a line of its own (``NAME_geometric``), by the geometric mean. With
``--seal`` the test part is scored as well, into a file of its own that nothing prints but
``--open-test``: once a task, when all is chosen. A row's cost is in CPU seconds and gradient steps
with everything counted; ``--quality``, which compares drawn models with held-out tails, is looked
at outside of it. One thread, no Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from chains import Task
from readouts import run
from specs import Bench, read_bench
from table import print_tables


def main() -> None:
    """The command line."""
    arguments = _arguments()
    if arguments.table:
        print_tables(arguments.table, arguments.open_test)
        return
    torch.set_num_threads(1)
    bench = read_bench(arguments.config)
    wanted = re.compile(arguments.methods)
    with arguments.output.open("a", encoding="utf-8") as output:
        for repeat in _range(arguments.repeats or f"0-{bench.repeats - 1}"):
            _run_split(bench, repeat, wanted, arguments, output)


def _run_split(
    bench: Bench,
    repeat: int,
    wanted: re.Pattern[str],
    arguments: argparse.Namespace,
    output: TextIO,
) -> None:
    done = _done(arguments.output)
    task, began = None, time.process_time()
    for budget in arguments.budgets or bench.budgets:
        for name, method in bench.methods.items():
            if (repeat, budget, name) in done or not wanted.fullmatch(name):
                continue
            task = task or Task(bench, repeat)
            sealed = arguments.seal is not None
            rows = run(task, method, budget, with_test=sealed, quality=arguments.quality)
            for added, row in (rows or {"": {"paid": False}}).items():
                key = {"task": arguments.config.stem, "split": repeat, "budget": budget}
                key |= {"method": name + added}
                if "test" in row:
                    _write(arguments.seal, key | {k: row.pop(k) for k in ("test", "temperature")})
                key |= {"ours": method.ours, "chosen_by": bench.chosen_by}
                output.write(json.dumps(key | row) + "\n")
            output.flush()
        took = time.process_time() - began
        print(f"split {repeat}, B = {budget}: {took:.0f} s CPU so far", file=sys.stderr, flush=True)


def _write(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _done(path: Path) -> set[tuple[int, int, str]]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["split"], line["budget"], line["method"]) for line in lines}


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="a .yaml of this folder")
    parser.add_argument("--output", type=Path, help="JSON lines are appended to it")
    parser.add_argument("--repeats", help="splits, as in 0-4; all of the config")
    parser.add_argument("--budgets", type=lambda text: [int(b) for b in text.split(",")])
    parser.add_argument("--methods", default=".*", help="regular expression of whole names")
    parser.add_argument("--seal", type=Path, help="file for the test part's scores")
    parser.add_argument(
        "--quality", action="store_true", help="compare drawn models with held-out tails as well"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="JSON lines to print tables of")
    parser.add_argument("--open-test", type=Path, nargs="+", help="sealed scores, to be opened")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.config and arguments.output):
        parser.error("expected a config and --output, or --table")
    return arguments


if __name__ == "__main__":
    main()
