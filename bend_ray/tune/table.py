"""The tables of a study: trials, the Pareto front, and what trials shared."""

from __future__ import annotations

from bend_ray.config.yaml_text import flow
from bend_ray.report import results
from bend_ray.report.results import Row, Table
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.study import Study

SCORES = ("validation NLL", "accuracy %", "members", "cost s", "MFLOP an answer")


def score_cells(bag: BagRecord) -> Row:
    """A bag's ``SCORES``."""
    scores = (f"{bag.nll:.4f}", f"{100 * bag.accuracy:.2f}", str(bag.size))
    cost = (f"{bag.cost_seconds:.1f}", f"{bag.flops / 1e6:.3g}")
    return dict(zip(SCORES, (*scores, *cost), strict=True))


def trials_table(study: Study) -> Table:
    """Trials that are done, the lowest objective first, then those that are not."""
    others = [trial for trial in study.trials if trial.status != "done"]
    ordered = [*sorted(study.done, key=lambda trial: trial.best.objective), *others]
    rows = [_row(study, trial) for trial in ordered]
    failures = "".join(f" Trial {number} failed: {error}." for number, error in _failures(study))
    return Table.of("trials", rows, 0, failures=failures)


def front_table(study: Study) -> Table:
    """The Pareto front, its knee marked."""
    front, knee = study.front()
    rows = [
        {"trial": str(trial.number), **score_cells(bag), "": "knee" if (trial, bag) == knee else ""}
        for trial, bag in front
    ]
    return Table.of("front", rows, front.index(knee))


def stages_table(study: Study) -> Table:
    """What trials shared."""
    asked, made = study.stages_in_all()
    rows = [
        {"stage": stage, "asked for": str(n), "made": str(own), "shared": str(n - own)}
        for stage, (n, own) in study.stages().items()
    ]
    return Table.of("shared", rows, asked=asked, made=made, shared=asked - made)


def text(study: Study) -> str:
    """Trials and front as aligned text."""
    return "\n".join(
        [
            *results.text(trials_table(study).rows),
            *(f"trial {number} failed: {error}" for number, error in _failures(study)),
            "\nPareto front of validation NLL, total cost and cost of an answer",
            *results.text(front_table(study).rows),
        ]
    )


def _failures(study: Study) -> list[tuple[int, str]]:
    """Numbers and errors of trials that failed."""
    return [(t.number, t.error or "unknown") for t in study.trials if t.status == "failed"]


def _row(study: Study, trial: TrialRecord) -> Row:
    # A trial whose process died before its record was written has no point.
    knobs = {
        n: flow(trial.point[p]) if trial.point else "-" for p, n in study.section.names.items()
    }
    scores, state = dict.fromkeys(SCORES, "-"), str(trial.status)
    if trial.status == "done":
        scores, state = score_cells(trial.best), _place(study, trial)
    elif trial.milestones:
        last = trial.milestones[-1]
        scores |= zip(SCORES, (f"{last.nll:.4f}", f"{100 * last.accuracy:.2f}"), strict=False)
        if trial.status == "stopped":
            state = f"stopped at {100 * last.share:.0f} %"
    made = ", ".join(stage.stage for stage in trial.stages if stage.made) or "nothing"
    return {"trial": str(trial.number), **knobs, **scores, "state": state, "made": made}


def _place(study: Study, trial: TrialRecord) -> str:
    """Where a trial that is done stands to the front."""
    front, knee = study.front()
    sizes = sorted(bag.size for each, bag in front if each.name == trial.name)
    if not sizes:
        return "done"
    on = f"on the front with {', '.join(map(str, sizes))}"
    return f"{on}; knee" if knee[0].name == trial.name else on
