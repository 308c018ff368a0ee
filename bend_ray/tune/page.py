"""The page of a study: one self-contained HTML file, a PNG of each figure and a JSON beside it."""

from __future__ import annotations

from bend_ray.process.log import duration
from bend_ray.report.location import page_uri
from bend_ray.report.page import Cell, Line, Page, Table
from bend_ray.report.verdicts import Highlight
from bend_ray.storage.masking import masked_json
from bend_ray.tune import fresh as fresh_splits
from bend_ray.tune.best import best_yaml
from bend_ray.tune.fresh import Fresh
from bend_ray.tune.panels import chapters
from bend_ray.tune.study import Study, summary
from bend_ray.tune.table import failures, front_header, front_rows, header, rows

HTML_NAME = "tune.html"
JSON_NAME = "tune.json"


def write_page(study: Study, fresh: Fresh | None) -> str:
    """Write a study's page beside the reports of the store.

    Args:
        study: that is over.
        fresh: the winner on fresh splits, if it was asked for.

    Returns:
        Where the page is, as a path or URI.

    Raises:
        StoreError: it cannot be written.
    """
    artifact = study.artifact
    where = artifact.store.directory("report", artifact.fingerprint)
    data = {
        "tune": 1,
        "config": masked_json(study.config.model_dump(mode="json")),
        "search": study.section.model_dump(mode="json"),
        "trials": [trial.model_dump() for trial in study.trials],
        "front": front_rows(study),
        "stages": study.stages(),
        "cost": study.cost.model_dump(),
        "fresh": fresh.as_json() if fresh else None,
    }
    page(study, fresh).write(where, data, HTML_NAME, JSON_NAME)
    return page_uri(where, HTML_NAME)


def page(study: Study, fresh: Fresh | None = None) -> Page:
    """The page, drawn but not written."""
    counts, stages, *winner = summary(study)
    section = study.section
    text = ". ".join([*winner, *(fresh_splits.sentences(fresh) if fresh else [])])
    return Page(
        title="Latent size, ensemble count and what they cost",
        subtitle=f"bend tune · {counts} · {section.searcher.kind}, {section.scheduler.kind}, "
        f"objective {section.objective.kind} · {duration(study.cost.wall_seconds)}",
        headline=text[:1].upper() + text[1:] + ".",
        highlights=_cards(study),
        tables=[_trials(study), _front(study), _stages(study, stages)],
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
    asked, made = study.stages_in_all()
    _, knee = study.front()
    return [
        Highlight(
            value=f"{bag.nll:.4f}",
            label="Winner's validation NLL",
            note=f"trial {trial.number}, {bag.size} members, {100 * bag.accuracy:.2f} % accuracy",
        ),
        Highlight(
            value=f"{knee[1].nll:.4f} at {knee[1].cost_seconds:.1f} s",
            label="Knee of the trade",
            note=f"trial {knee[0].number}, {knee[1].size} members",
        ),
        Highlight(
            value=f"{asked - made} of {asked}",
            label="Stages shared",
            note=f"{made} were made, in {study.cost.seconds:.0f} s of the processor",
        ),
    ]


def _trials(study: Study) -> Table:
    winner = study.winner[0]
    return Table(
        title="Trials, the best objective first",
        header=header(study),
        rows=[
            Line([Cell(text) for text in row], trial.name == winner.name)
            for trial, row in rows(study)
        ],
        note="Scores of a trial's best bag on validation images; of a trial that was stopped, of "
        "its last milestone. The test part was not opened by the search. Cost: everything from "
        "scratch, as if nothing were shared."
        + "".join(f" Trial {number} failed: {error}." for number, error in failures(study)),
    )


def _front(study: Study) -> Table:
    return Table(
        title="The Pareto front, the lowest NLL first",
        header=front_header(),
        rows=[Line([Cell(text) for text in row], row[-1] == "knee") for row in front_rows(study)],
        note="Of every bag of every trial: none other is as good in NLL, total cost and cost of an "
        "answer, and better in one. MFLOP: of the whole bag for one image.",
    )


def _stages(study: Study, sentence: str) -> Table:
    return Table(
        title="What the trials shared",
        header=["stage", "asked for", "made", "shared"],
        rows=[
            Line([Cell(stage), Cell(str(asked)), Cell(str(made)), Cell(str(asked - made))])
            for stage, (asked, made) in study.stages().items()
        ],
        note=f"{sentence[:1].upper()}{sentence[1:]}. Made: artifacts that differ, by fingerprint.",
    )
