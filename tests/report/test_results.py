from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from figures import NOVELTY, metrics, whole_result

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import STAGES, Graph, graph_of
from bend_ray.config.resources import HourlyPrice
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.populations.divergence import Divergence
from bend_ray.report.evaluation import Result
from bend_ray.report.results import table as table_of


def poor_result() -> dict[str, Any]:
    """A result of a run without held-out members, deep ensemble or pairs to compare."""
    poor = whole_result()
    for scores in poor["populations"].values():
        scores["diversity"] = None
    poor["populations"]["held_out"] = dict.fromkeys(("accuracy", "diversity", "novelty"))
    poor["populations"]["generated"]["novelty"] = {**NOVELTY, "spread": None}
    poor["prices"]["ordinary_seconds"] = None
    del poor["prices"]["equal_cost_deep_ensemble"]
    del poor["rivals"]["deep_ensemble"]
    return poor


def table(said: dict[str, Any]) -> str:
    """Of what ``bend run --json`` writes."""
    return table_of(Result.from_json(said))


def result(made: Graph) -> dict[str, Any]:
    return Result.of(made).as_json()


def sections(text: str) -> list[list[str]]:
    return [section.splitlines() for section in text.split("\n\n")]


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def cell_ends(line: str) -> list[int]:
    return [found.end() for found in re.finditer(r"\S+(?: \S+)*", line)]


@pytest.mark.parametrize("said", [whole_result(), poor_result()], ids=["whole", "poor"])
def test_figures_stand_under_their_headings(said: dict[str, Any]) -> None:
    tables = sections(table(said))
    assert [cells(lines[0])[0] for lines in tables] == [
        "test part",
        "single members",
        "novelty",
        "cost",
    ]
    for header, *rows in tables:
        assert rows
        for row in rows:
            assert row == row.rstrip()
            assert not row.startswith(" ")
            assert set(cell_ends(row)[1:]) <= set(cell_ends(header)[1:])


def test_the_bag_comes_first_and_rivals_by_nll() -> None:
    bags = sections(table(whole_result()))[0]
    assert [cells(line)[0] for line in bags[1:]] == [
        "bag of generated",
        "deep ensemble",
        "deep ensemble, equal cost",
        "Gaussian",
    ]
    assert cells(bags[1]) == [
        "bag of generated",
        *("95.12", "0.1654", "0.0721", "1.34", "48", "12.0"),
    ]


def test_a_deep_ensemble_that_was_cut_short_says_so() -> None:
    said = whole_result()
    said["prices"]["equal_cost_deep_ensemble"]["affordable"] = 9
    *rows, note = sections(table(said))[0]
    assert "equal cost" not in "\n".join(rows)
    assert "would have trained 9 ordinary models; the deep ensemble has 4" in note


def test_temperatures_are_told_where_they_were_fitted() -> None:
    said = whole_result()
    for scores in (said["bag"], *said["rivals"].values()):
        scores["temperature"] = 0.814
    assert "fitted on validation examples" in sections(table(said))[0][-1]
    assert sections(table(said))[0][-1].endswith("the bag's is 0.81.")
    assert "temperature" not in table(whole_result())


def test_a_rival_whose_nll_is_not_a_number_comes_last() -> None:
    said = whole_result()
    said["rivals"] = {"noise": {**said["rivals"]["gaussian"], "nll": None}, **said["rivals"]}
    bags = sections(table(said))[0]
    assert cells(bags[-1])[:3] == ["noise", "95.12", "-"]


def test_what_is_not_known_is_a_dash_and_what_is_not_there_no_row() -> None:
    bags, members, novelty, cost = sections(table(poor_result()))
    assert "deep ensemble" not in "\n".join(bags)
    assert [cells(line)[0] for line in members[1:]] == ["generated", "originals"]
    assert cells(members[1])[5:] == ["-", "-", "-"]
    assert [cells(line)[0] for line in novelty[1:]] == ["generated"]
    assert cells(novelty[1])[2] == "-"
    assert cells(cost[-1]) == ["one ordinary model", "-"]


@pytest.mark.parametrize("said", [whole_result(), poor_result()], ids=["whole", "poor"])
def test_the_json_of_a_result_reads_as_it_was_written(said: dict[str, Any]) -> None:
    assert Result.from_json(said).as_json() == said
    kept = json.loads(json.dumps(said))
    assert Result.from_json(kept) == Result.from_json(said)


@pytest.mark.parametrize("key", ["bag", "rivals", "cost", "fingerprints", "populations"])
def test_json_that_is_no_result_is_refused_in_one_line(key: str) -> None:
    for said in (
        {k: v for k, v in whole_result().items() if k != key},
        {**whole_result(), key: 3},
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            Result.from_json(said)


def test_costs_are_shown_stage_by_stage() -> None:
    lines = sections(table(whole_result()))[3]
    assert [cells(line)[0] for line in lines[1:7]] == list(STAGES)
    assert cells(lines[1]) == ["seeds", "1.2", "0.0", "1m15s"]
    assert cells(lines[7]) == ["one more generated model", "0.0123"]


def test_what_diverged_is_counted_and_told_at_the_end(tmp_path: Path) -> None:
    made = graph_of(PipelineConfig(), Store(str(tmp_path)))
    diverged = [
        Divergence(kind="run", trunk=0, fork=1, seed=7, outcome="dropped", models=(3, 4)),
        Divergence(kind="root", trunk=1, seed=9, outcome="retrained"),
    ]
    for artifact in made:
        said = metrics() if artifact.stage == "evaluation" else {}
        if artifact.stage == "seeds":
            said["diverged"] = [each.model_dump(mode="json") for each in diverged]
        artifact.commit(files=[], metrics=said, cost=Cost())
    told = result(made)
    assert told["diverged"]["seeds"] == {"dropped": 2, "retrained": 1}
    assert told["diverged"]["samples"] == {"dropped": 0, "retrained": 0}
    assert sections(table(told))[-1] == [
        "seeds: 2 diverged and left out",
        "seeds: 1 diverged and trained again with another seed",
    ]


@pytest.fixture(name="committed")
def make_committed(tmp_path: Path) -> Graph:
    made = graph_of(PipelineConfig(), Store(str(tmp_path)))
    for number, artifact in enumerate(made, start=1):
        said = metrics() if artifact.stage == "evaluation" else {}
        artifact.commit(files=[], metrics=said, cost=Cost(cpu_seconds=number, wall_seconds=1.0))
    return made


def test_a_result_is_the_evaluation_with_costs_and_names(committed: Graph, tmp_path: Path) -> None:
    said = result(committed)
    assert json.loads(json.dumps(said)) == said
    assert said["bag"]["accuracy"] == 0.9512
    assert said["prices"] == metrics()["prices"]
    assert [said["cost"][stage]["cpu_seconds"] for stage in STAGES] == [1, 2, 3, 4, 5, 6]
    assert said["store"] == str(tmp_path)
    assert said["fingerprints"] == {stage: committed[stage].fingerprint for stage in STAGES}
    assert table(said).startswith("test part")


def test_money_is_told_at_the_prices_of_whoever_asks(committed: Graph) -> None:
    config = PipelineConfig(price_per_hour=HourlyPrice(cpu=36.0, gpu=99.0))
    again = graph_of(config, committed.evaluation.store)
    assert [each.fingerprint for each in again] == [each.fingerprint for each in committed]
    said = result(again)
    assert said["money"] == {stage: n / 100 for n, stage in enumerate(STAGES, start=1)}
    assert Result.from_json(said).as_json() == said
    lines = sections(table(said))[3]
    assert cells(lines[0])[-1] == "money"
    assert cells(lines[6]) == ["evaluation", "6.0", "0.0", "1.0s", "0.06"]
    assert cells(lines[7]) == ["all", "0.21"]
    assert "money" not in result(committed)


def test_a_result_can_be_asked_for_again(committed: Graph) -> None:
    assert result(committed) == result(committed)


def test_there_is_no_result_before_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="to be committed"):
        result(graph_of(PipelineConfig(), Store(str(tmp_path))))
