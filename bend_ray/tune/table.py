"""The table of trials: one row a trial and its best bag, as text and for the page."""

from __future__ import annotations

from bend_ray.config.yaml_text import flow
from bend_ray.report.results import aligned
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.study import Study


def header(study: Study) -> list[str]:
    """Names of the columns."""
    scores = ["validation NLL", "accuracy %", "members", "cost s", "MFLOP an answer"]
    return ["trial", *study.section.names.values(), *scores, "state", "made"]


def rows(study: Study) -> list[tuple[TrialRecord, list[str]]]:
    """Trials that are done, the lowest objective first, then those that are not."""
    front, knee = study.front()
    others = [trial for trial in study.trials if trial.status != "done"]
    ordered = [*sorted(study.done, key=lambda trial: trial.best.objective), *others]
    marks = {trial.name: _mark(trial, front, knee) for trial in study.done}
    return [(trial, _row(study, trial, marks.get(trial.name, ""))) for trial in ordered]


def front_header() -> list[str]:
    """Names of the front's columns."""
    return ["trial", "members", "validation NLL", "accuracy %", "cost s", "MFLOP an answer", ""]


def front_rows(study: Study) -> list[list[str]]:
    """The Pareto front, the lowest NLL first, its knee marked."""
    front, knee = study.front()
    return [
        [str(trial.number), str(bag.size), *_scores(bag), "knee" if (trial, bag) == knee else ""]
        for trial, bag in front
    ]


def table(study: Study) -> str:
    """Both as aligned text."""
    sections = [
        [tuple(header(study)), *(tuple(row) for _, row in rows(study))],
        [tuple(front_header()), *(tuple(row) for row in front_rows(study))],
    ]
    trials, front = ("\n".join(aligned(section)) for section in sections)
    failed = "".join(f"trial {number} failed: {error}\n" for number, error in failures(study))
    title = "Pareto front of validation NLL, total cost and cost of an answer"
    return f"{trials}\n{failed}\n{title}\n{front}"


def failures(study: Study) -> list[tuple[int, str]]:
    """Numbers and errors of trials that failed."""
    return [(t.number, t.error or "unknown") for t in study.trials if t.status == "failed"]


def _row(study: Study, trial: TrialRecord, mark: str) -> list[str]:
    # A trial whose process died before its record was written has no point.
    knobs = [flow(trial.point[path]) if trial.point else "-" for path in study.section.knobs]
    made = ", ".join(stage.stage for stage in trial.stages if stage.made) or "nothing"
    if trial.status == "done":
        bag = trial.best
        scores = [f"{bag.nll:.4f}", f"{100 * bag.accuracy:.2f}", str(bag.size), *_costs(bag)]
        return [str(trial.number), *knobs, *scores, mark, made]
    state: str = trial.status
    scores = ["-"] * 5
    if trial.milestones:
        last = trial.milestones[-1]
        scores[:2] = [f"{last.nll:.4f}", f"{100 * last.accuracy:.2f}"]
        if trial.status == "stopped":
            state = f"stopped at {100 * last.share:.0f} %"
    return [str(trial.number), *knobs, *scores, state, made]


def _mark(
    trial: TrialRecord,
    front: list[tuple[TrialRecord, BagRecord]],
    knee: tuple[TrialRecord, BagRecord],
) -> str:
    sizes = [bag.size for each, bag in front if each.name == trial.name]
    if not sizes:
        return "done"
    on = f"on the front with {', '.join(str(size) for size in sorted(sizes))}"
    return f"{on}; knee" if knee[0].name == trial.name else on


def _scores(bag: BagRecord) -> list[str]:
    return [f"{bag.nll:.4f}", f"{100 * bag.accuracy:.2f}", *_costs(bag)]


def _costs(bag: BagRecord) -> list[str]:
    return [f"{bag.cost_seconds:.1f}", f"{bag.flops / 1e6:.3g}"]
