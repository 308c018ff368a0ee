"""What models say, as an artifact: asked in pieces, read in blocks, asked once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MakeConfig, make, own_processes

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph
from bend_ray.data.inputs import TEST, VALIDATION, Part
from bend_ray.ensemble import predictions
from bend_ray.populations import members as stored
from bend_ray.populations.answers import Answers
from bend_ray.populations.networks import Classifiers
from bend_ray.report.evaluation import Result
from bend_ray.stages import evaluation

pytestmark = pytest.mark.trains

ALL_DRAWING = (
    "evaluation.rivals=[{kind: originals_bag}, {kind: noise}, {kind: gaussian}, "
    "{kind: multiswag}, {kind: trunk_averages}]"
)


def nll_of(graph: Graph) -> dict[str, float | None]:
    """Of every bag."""
    found = Result.of(graph)
    return {"bag": found.bag.nll} | {name: each.nll for name, each in found.rivals.items()}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PIECE_MODELS", 4)
    # Six models of ten classes: 7 images a block.
    monkeypatch.setattr(predictions, "BLOCK_BYTES", 4 * 6 * 10 * 7)


@pytest.mark.usefixtures("small_pieces")
def test_stored_answers_are_what_the_models_say(tiny: MakeConfig, shared_store: Store) -> None:
    config = tiny("evaluation.vote.kind=majority", "samples.temperature=0.8")
    graph = make(config, shared_store)
    drawn, parts = read_population(graph.samples), config.dataset.load()
    said = Answers(graph.questions["samples"].about(TEST).answers)
    logits = Classifiers(config, parts, "cpu").logits(torch.from_numpy(drawn.theta_KP), parts.test)
    blocks = list(said.blocks())
    assert said.shape == logits.shape
    assert {labels.shape[0] for _, labels in blocks[:-1]} == {7}
    torch.testing.assert_close(torch.cat([block for block, _ in blocks], dim=1), logits)
    assert torch.equal(torch.cat([labels for _, labels in blocks]), parts.test.labels_N)
    some = [5, 0, 3]
    found = torch.cat([block for block, _ in said.select(some).blocks()], dim=1)
    torch.testing.assert_close(found, logits[some])
    torch.testing.assert_close(said.select(some).select([2]).scores()[1], said.scores()[1][[3]])
    spaced = said.thinned(4 * 6 * 10 * 50)
    step = -(-len(parts.test) // 50)
    torch.testing.assert_close(spaced.logits_ENC, logits[:, ::step])


def test_another_vote_temperature_or_bag_asks_nobody(
    tiny: MakeConfig, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny(ALL_DRAWING), shared_store)

    def asked(self: object, piece: object) -> None:
        raise AssertionError(f"{piece} was asked")

    monkeypatch.setattr(evaluation.Evaluator, "ask", asked)
    for change in (
        "evaluation.vote={kind: weighted}",
        "evaluation.temperature_scaling=true",
        "evaluation.bagging={kind: greedy, size: 3}",
    ):
        graph = make(tiny(ALL_DRAWING, change), shared_store)
    assert {scores.size for scores in Result.of(graph).rivals.values()} == {2, 3}
    # Without a rival no question is new either.
    make(tiny("evaluation.rivals=[{kind: best_original}]"), shared_store)
    with pytest.raises(AssertionError, match="was asked"):
        make(tiny("evaluation.rivals=[{kind: noise, scale: 0.5}]"), shared_store)


@pytest.mark.usefixtures("small_pieces")
def test_an_interrupted_evaluation_asks_the_pieces_that_are_missing(
    tiny: MakeConfig, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals = "evaluation.rivals=[{kind: noise, scale: 0.3}, {kind: gaussian, scale: 0.7}]"
    config, ask, done = tiny(rivals, "samples.temperature=0.7"), evaluation.Evaluator.ask, []

    def stopped(self: evaluation.Evaluator, piece: evaluation.Piece) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((piece.question.answers.fingerprint, piece.index))
        ask(self, piece)

    monkeypatch.setattr(evaluation.Evaluator, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(config, shared_store)

    def counted(self: evaluation.Evaluator, piece: evaluation.Piece) -> None:
        done.append((piece.question.answers.fingerprint, piece.index))
        ask(self, piece)

    monkeypatch.setattr(evaluation.Evaluator, "ask", counted)
    graph = make(config, shared_store)
    fresh = [q for name, q in graph.questions.items() if name != "seeds"]
    questions = [q.about(part) for q in fresh for part in (VALIDATION, TEST)]
    pieces = [
        (q.answers.fingerprint, index)
        for q in questions
        for index in range(-(-evaluation.num_models(q) // 4))
    ]
    seeds = {graph.questions["seeds"].about(p).answers.fingerprint for p in (VALIDATION, TEST)}
    assert sorted(piece for piece in done if piece[0] not in seeds) == sorted(pieces)
    assert len(set(done)) == len(done)


def test_the_test_part_is_closed_until_all_is_chosen(
    tiny: MakeConfig, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    of, choose = Part.of, evaluation.Evaluator.choose
    monkeypatch.setattr(
        Part, "of", lambda self, parts: (seen.append(self.name), of(self, parts))[1]
    )

    def chosen(self: evaluation.Evaluator, _: None) -> Any:
        found = choose(self, None)
        seen.append("chosen")
        return found

    monkeypatch.setattr(evaluation.Evaluator, "choose", chosen)
    make(tiny("samples.temperature=0.6"), shared_store)
    assert set(seen[: seen.index("chosen")]) == {"validation"}
    assert set(seen[seen.index("chosen") + 1 :]) == {"test"}


@pytest.mark.parametrize("held_bytes", [0, 2**20], ids=["by blocks", "whole"])
def test_some_rows_and_columns_are_read_alone(
    tiny: MakeConfig, shared_store: Store, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", held_bytes)
    graph = make(tiny(), shared_store, "seeds")
    theta = torch.from_numpy(read_population(graph.seeds).theta_KP)
    for rows in ([7, 2, 11], [0, 1, 2], []):
        vectors = stored.StoredVectors(graph.seeds, rows)
        assert vectors.shape == (len(rows), theta.shape[1])
        assert torch.equal(vectors[:, 5:90], theta[rows][:, 5:90])
        assert torch.equal(vectors[1:, :], theta[rows][1:])
    alone = torch.tensor([2])
    assert torch.equal(stored.StoredVectors(graph.seeds)[alone, 5:90], theta[alone][:, 5:90])


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_a_piece_and_nothing_else(
    tiny: MakeConfig, shared_store: Store, tmp_path: Path
) -> None:
    from bend_ray.runtime.on_ray import RayRuntime

    config, killed = tiny(ALL_DRAWING, "evaluation.resources.workers=2"), list[int]()
    expected = nll_of(make(config, shared_store))
    store = Store(str(tmp_path))
    make(config, store, "samples")
    answered = Path(store.path) / "answers"

    def kill_after_the_first_piece() -> None:
        deadline = time.monotonic() + 120
        while not list(answered.glob("*/piece-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.005)
        for pid in own_processes("Evaluator")[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill_after_the_first_piece)
    killer.start()
    graph = make(config, store, runtime=RayRuntime(True))
    killer.join()
    assert killed
    assert nll_of(graph) == pytest.approx(expected, rel=1e-6)
