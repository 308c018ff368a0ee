"""The page of a study: one self-contained HTML file, a PNG of each figure and a JSON beside it."""

from __future__ import annotations

from bend_ray.process.log import duration
from bend_ray.report.page import Page
from bend_ray.report.verdicts import Highlight
from bend_ray.storage.masking import masked_json
from bend_ray.tune import fresh as fresh_splits
from bend_ray.tune.fresh import Fresh
from bend_ray.tune.panels import chapters
from bend_ray.tune.study import Study, best_yaml, summary
from bend_ray.tune.table import front_table, stages_table, trials_table

NAME = "tune"


def write_page(study: Study, fresh: Fresh | None) -> str:
    """Write a study's page beside the reports of the store; returns where it is."""
    data = {
        "tune": 1,
        "config": masked_json(study.config.model_dump(mode="json")),
        "search": study.section.model_dump(mode="json"),
        "trials": [trial.model_dump() for trial in study.trials],
        "front": front_table(study).rows,
        "stages": study.stages(),
        "cost": study.cost.model_dump(),
        "fresh": fresh.as_json() if fresh else None,
    }
    where = study.artifact.store.directory("report", study.artifact.fingerprint)
    return page(study, fresh).write(where, NAME, data)


def page(study: Study, fresh: Fresh | None = None) -> Page:
    """The page, drawn but not written."""
    counts, _, *winner = summary(study)
    section = study.section
    text = ". ".join([*winner, *(fresh_splits.sentences(fresh) if fresh else [])])
    return Page(
        title="Latent size, ensemble count and what they cost",
        subtitle=f"bend tune · {counts} · {section.searcher.kind}, {section.scheduler.kind}, "
        f"objective {section.objective.kind} · {duration(study.cost.wall_seconds)}",
        headline=text[:1].upper() + text[1:] + ".",
        highlights=_cards(study),
        tables=[trials_table(study), front_table(study), stages_table(study)],
        chapters=chapters(study),
        made={
            "sentence": "The winner's config, best.yaml, for bend run:",
            "command": best_yaml(study.config_of(*study.winner), "", mask=True),
            "versions": f"store {study.artifact.store!r}, study {study.artifact.fingerprint}",
            "config": section.model_dump_json(indent=2),
            "artifacts": "\n".join(
                f"trial {trial.number:<3} {stage.stage:<12} {stage.fingerprint}"
                f"{'  made' if stage.made else ''}"
                for trial in study.trials
                for stage in trial.stages
            ),
        },
    )


def _cards(study: Study) -> list[Highlight]:
    trial, bag = study.winner
    turn, turned = study.front()[1]
    asked, made = study.stages_in_all()
    return [
        Highlight(
            value=f"{bag.nll:.4f}",
            label="Winner's validation NLL",
            note=f"trial {trial.number}, {bag.size} members, {100 * bag.accuracy:.2f} % accuracy",
        ),
        Highlight(
            value=f"{turned.nll:.4f} at {turned.cost_seconds:.1f} s",
            label="Knee of the trade",
            note=f"trial {turn.number}, {turned.size} members",
        ),
        Highlight(
            value=f"{asked - made} of {asked}",
            label="Stages shared",
            note=f"{made} were made, in {study.cost.seconds:.0f} s of the processor",
        ),
    ]
