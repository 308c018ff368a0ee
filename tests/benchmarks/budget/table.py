"""Tables of a budget bench: each budget's methods, and ours against every one of them.

Validation chooses ours by the figure that the bench names (``chosen_by``), which orders the rows
too. A paired difference over splits is a tie within two standard errors, or of fewer than three
pairs.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FEWEST = 3
"""Pairs below which no difference is called one."""
NAN = float("nan")
Row = dict[str, Any]


def print_tables(paths: Sequence[Path], sealed: Sequence[Path] | None) -> None:
    """Markdown on stdout: of the validation part, or of the test part where it is opened."""
    lines, part = _lines(paths), "test" if sealed else "validation"
    tests = {_key(line): line["test"] for line in _lines(sealed or [])}
    for line in lines:
        if _key(line) in tests:
            line["test"] = tests[_key(line)]
    kept = {_key(line): line for line in lines if part in line}
    unpaid = {(r["task"], r["budget"], r["method"]) for r in lines if r.get("paid") is False}
    for task in dict.fromkeys(key[0] for key in kept):
        for budget in sorted({key[1] for key in kept if key[0] == task}):
            rows = {key[2:]: row for key, row in kept.items() if key[:2] == (task, budget)}
            _print(task, budget, rows, part)
            missing = [name for t, b, name in unpaid if (t, b) == (task, budget)]
            if missing:
                print("\nCannot be paid in at least one split:", ", ".join(sorted(missing)))


def _lines(paths: Sequence[Path]) -> list[Row]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _key(line: Row) -> tuple[str, int, str, int]:
    return line["task"], line["budget"], line["method"], line["split"]


def _print(task: str, budget: int, rows: dict[tuple[str, int], Row], part: str) -> None:
    methods = list(dict.fromkeys(name for name, _ in rows))
    scores = {name: {s: r for (n, s), r in rows.items() if n == name} for name in methods}
    ours = [name for name in methods if next(iter(scores[name].values()))["ours"]]
    # Lines of plain recipes may be older than the figure's name.
    chosen_by = next(iter(rows.values())).get("chosen_by", "nll")
    # Ours is chosen by validation, whichever part is shown, among those that all splits have.
    most = max(map(len, scores.values()))
    whole = [name for name in ours if len(scores[name]) == most]
    best = min(whole, key=lambda name: _mean(scores[name], "validation", chosen_by), default=None)
    print(f"\n### {task}, B = {budget}, {part}\n")
    print("| method | splits | members | cost | accuracy % | NLL | calibrated NLL |", end="")
    print(f" {best} minus it: accuracy, NLL, calibrated NLL |" if best else "")
    print("|---|---|---|---|---|---|---|" + ("---|" if best else ""))
    for name in sorted(methods, key=lambda n: _mean(scores[n], part, chosen_by)):
        rows_of = list(scores[name].values())
        cost = statistics.mean(r["seconds"] / r["unit_seconds"] for r in rows_of)
        members = round(statistics.mean(r["members"] for r in rows_of))
        cells = [_mean(scores[name], part, k) for k in ("accuracy", "nll", "nll_calibrated")]
        shown = "**" + name + "**" if name in ours else name
        print(
            f"| {shown} | {len(rows_of)} | {members} | {cost:.2f} | {cells[0]:.2f} | "
            f"{cells[1]:.4f} | {cells[2]:.4f} |",
            end="",
        )
        if best:
            told = [difference(scores[best], scores[name], part, key) for key in _KEYS]
            print(" |" if name == best else " " + "; ".join(told) + " |", end="")
        print()


_KEYS = {"accuracy": (2, +1), "nll": (4, -1), "nll_calibrated": (4, -1)}
"""Digits, and whether more is better."""


def difference(ours: dict[int, Row], theirs: dict[int, Row], part: str, key: str) -> str:
    """Mean paired difference, its standard error, and what it comes to."""
    digits, better = _KEYS[key]
    pairs = [ours[s][part][key] - theirs[s][part][key] for s in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return "-"
    mean = statistics.mean(pairs)
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else NAN
    verdict = "tie"
    if len(pairs) >= FEWEST and abs(mean) > 2 * error:
        verdict = "win" if mean * better > 0 else "loss"
    return f"{mean:+.{digits}f} ± {error:.{digits}f} {verdict}"


def _mean(rows: dict[int, Row], part: str, key: str) -> float:
    return statistics.mean(row[part][key] for row in rows.values())
