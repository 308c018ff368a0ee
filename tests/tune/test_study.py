"""What a study says of its trials, as text and as a page."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from figures import whole_result
from pages import Seen

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError, TrainingError
from bend_ray.report.evaluation import Result
from bend_ray.tune.page import text as table
from bend_ray.tune.page import write_page
from bend_ray.tune.records import RECORD, BagRecord, Milestone, StageRecord, TrialRecord, told
from bend_ray.tune.search import can_go_on, refuse_strangers
from bend_ray.tune.space import TuneSection
from bend_ray.tune.study import Fresh, Study, sentences, summary

SECTION = TuneSection.model_validate(
    {
        "trials": 4,
        "ensemble_counts": [1, 8, 48],
        "knobs": {
            "autoencoder.model.latent_size": [60, None],
            "generator.process.prediction": ["v", "eps"],
        },
    }
)
BAG = BagRecord(size=8, nll=0.5, accuracy=0.8, cost_seconds=3.0, flops=8000, objective=0.5)
STAGES = ("seeds", "autoencoder", "latents", "generator", "samples")


def trial(number: int, latent: int | None, prediction: str, nll: float, **more: Any) -> TrialRecord:
    """A trial that is done; seeds are everybody's, an autoencoder belongs to its latent size."""
    names = ["s", f"a{latent}", f"l{latent}", f"g{latent}{prediction}", f"p{latent}{prediction}"]
    values = {
        "name": f"t{number}",
        "number": number,
        "point": {
            "autoencoder.model.latent_size": latent,
            "generator.process.prediction": prediction,
        },
        "status": "done",
        "stages": [
            StageRecord(stage=stage, fingerprint=name, made=True, cost=Cost())
            for stage, name in zip(STAGES, names, strict=True)
        ],
        "bags": [
            BagRecord(
                size=size,
                nll=nll + 0.1 / size,
                accuracy=0.9,
                cost_seconds=10.0 + (latent or 96) / 10 + size,
                flops=1000 * size,
                objective=nll + 0.1 / size,
            )
            for size in SECTION.ensemble_counts
        ],
    }
    return TrialRecord.model_validate(values | more)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    config = PipelineConfig()
    stopped: dict[str, Any] = {
        "status": "stopped",
        "bags": [],
        "milestones": [Milestone(share=0.25, bags=[BAG])],
    }
    trials = [
        trial(0, None, "v", 0.12),
        trial(1, 60, "v", 0.10),
        trial(2, 60, "eps", 0.2, **stopped),
        trial(3, None, "eps", 0.2, status="failed", bags=[], stages=[], error="<b>diverged</b>"),
        # The same config again, as searchers will ask.
        trial(4, 60, "v", 0.10),
    ]
    found = Study.of(config, SECTION, Store(str(tmp_path)))
    return replace(found, trials=trials, cost=Cost(cpu_seconds=40, wall_seconds=60))


def test_the_winner_the_base_and_their_configs(study: Study) -> None:
    won, bag = study.winner
    assert (won.number, bag.size) == (1, 48)
    assert study.base is not None
    assert study.base[0].number == 0
    assert study.base[1].size == PipelineConfig().samples.count
    config = study.config_of(won, won.bags[1])
    assert (config.autoencoder.model.latent_size, config.samples.count) == (60, 8)
    assert study.config_of(*study.base) == PipelineConfig()


def test_stages_are_counted_by_what_differs(study: Study) -> None:
    assert study.stages() == {
        "seeds": (4, 1),
        "autoencoder": (4, 2),
        "latents": (4, 2),
        "generator": (4, 3),
        "samples": (4, 3),
    }
    assert "20 stages asked for, 11 made, 9 shared" in summary(study)


def test_the_front_has_no_config_twice(study: Study) -> None:
    front, knee = study.front()
    assert [(each.number, bag.size) for each, bag in front] == [(1, 48), (1, 8), (1, 1)]
    assert knee in front


def test_the_table_tells_of_every_trial(study: Study) -> None:
    text = table(study)
    assert "on the front with 1, 8, 48; knee" in text
    assert "stopped at 25 %" in text
    assert "trial 3 failed: <b>diverged</b>" in text


def test_a_search_without_an_end_says_why(study: Study) -> None:
    failed = [each for each in study.trials if each.status == "failed"]
    empty = replace(study, trials=failed)
    for ask in (lambda: empty.winner, empty.front):
        with pytest.raises(TrainingError, match=r"none of 1: <b>diverged</b>"):
            ask()


def test_a_record_comes_back_as_it_was(study: Study) -> None:
    for record in study.trials:
        result = {RECORD: record.model_dump_json()}
        assert told(record.name, result, True, None) == record


def test_what_a_process_could_not_say_is_what_tune_thinks(study: Study) -> None:
    assert told("another", None, True, "it died") == TrialRecord(
        name="another", point={}, status="failed", error="it died"
    )
    cut_off = study.trials[0].model_copy(update={"status": "running", "bags": []})
    result = {RECORD: cut_off.model_dump_json()}
    assert told("t0", result, True, None).status == "stopped"
    assert told("t0", result, True, "it died").stages == study.trials[0].stages
    assert told("t0", result, False, None) == cut_off


def bag(nll: float) -> dict[str, Any]:
    said = whole_result()
    said["bag"] |= {"accuracy": 0.95, "nll": nll, "cost_seconds": 20.0}
    return Result.from_json(said)


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(study: Study) -> None:
    fresh = Fresh([bag(0.11), bag(0.12), bag(0.13)], [bag(0.12), bag(0.13), bag(0.14)])
    page = Path(write_page(study, fresh))
    seen = Seen(page.read_text())
    figures = {attrs["id"] for tag, attrs in seen.tags if tag == "figure"}
    assert figures == {
        "nll_by_latent_size",
        "accuracy_by_latent_size",
        "nll_by_ensemble_count",
        "accuracy_by_ensemble_count",
        "pareto_front",
        "parallel_coordinates",
    }
    assert {path.stem for path in page.parent.glob("*.png")} == figures
    for _, attrs in seen.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    assert "b" not in {tag for tag, _ in seen.tags}
    assert "<b>diverged</b>" in seen.text
    assert "-0.0100 ± 0.0000 nats: win" in seen.text.replace("\u00a0", " ")
    data = json.loads((page.parent / "tune.json").read_text())
    assert data["fresh"]["winner_minus_base"]["nll"]["verdict"] == "win"
    assert len(data["trials"]) == len(study.trials)


def test_fresh_splits_are_told_either_way() -> None:
    worse = Fresh([bag(0.12), bag(0.13), bag(0.14)], [bag(0.11), bag(0.12), bag(0.13)])
    assert any("nats: loss" in line for line in sentences(worse))
    same = Fresh([bag(0.12), bag(0.13)], [bag(0.13), bag(0.12)])
    assert any("nats: tie" in line for line in sentences(same))


def test_a_state_that_somebody_else_pickled_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bend_ray.tune import search

    monkeypatch.setattr(search.pipeline, "connect", lambda *_: pytest.fail("Ray was started"))
    artifact = Study.of(PipelineConfig(), SECTION, Store(str(tmp_path))).artifact
    artifact.write_json("ray/experiment_state.json", {})
    refuse_strangers(artifact)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(StoreError, match=r"written by user .*experiment_state\.json.*pickled"):
        search.tune(PipelineConfig(), SECTION, str(tmp_path))


def test_a_search_goes_on_from_a_whole_state_without_errors_only(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("tune", 1, {})

    def said(experiment: str, tuner: bytes) -> bool:
        for name, content in (("experiment_state-2.json", experiment.encode()), ("t.pkl", tuner)):
            with artifact.open_output(f"ray/{name}") as stream:
                stream.write(content)
        return can_go_on(artifact)

    def trials(*states: str) -> str:
        return json.dumps({"trial_data": [[json.dumps({"status": s}), "{}"] for s in states]})

    assert not can_go_on(artifact)
    pickled = pickle.dumps(0)
    assert said(trials("TERMINATED", "PENDING"), pickled)
    assert not said(trials("TERMINATED", "ERROR"), pickled)
    assert not said(trials(), pickled)
    assert not said(trials("PENDING")[:-9], pickled)
    assert not said("", pickled)
    assert not said(trials("PENDING"), pickled[:-2])
