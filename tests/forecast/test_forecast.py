"""``bend plan``: arithmetic in closed form, and a calibration of a tiny config."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from bend_ray.cli.main import cli
from bend_ray.config.reading import load_config
from bend_ray.config.schema import (
    Annealing,
    AutoencoderSection,
    Finish,
    PipelineConfig,
    SamplesSection,
    SeedsSection,
)
from bend_ray.data.examples import Parts
from bend_ray.forecast import calibration
from bend_ray.forecast.calibration import Line, Problem, Rates, calibrate
from bend_ray.forecast.workload import Phase, Work, at_rate, bottleneck, wall_of, workload
from bend_ray.generation.models import PrincipalMlp
from bend_ray.networks.protocols import Tails

RATES = Rates(
    step=Line(0.0, 0.001),
    setup=Line(0.0, 0.0),
    answer=0.0,
    coder_step=0.01,
    denoiser_step=0.02,
    gram_column=0.5,
    eigenvectors=3.0,
    draw=Line(0.0, 0.0),
    mixed=0.0,
    piece=0.0,
    write_bytes=1e12,
    read_bytes=1e12,
)
PROBLEM = Problem(
    members=128,
    training=112,
    parameters=3466,
    whole=3466,
    features=111,
    coder_parameters=1000,
    denoiser_parameters=2000,
    train_images=1000,
    validation_images=300,
    test_images=497,
)


@pytest.mark.parametrize(("processes", "wall"), [(1, 20.0), (4, 6.0), (10, 2.0), (512, 2.0)])
def test_pieces_are_done_in_rounds(processes: int, wall: float) -> None:
    assert Phase("cohorts", pieces=10, seconds=2.0).wall(processes) == wall


def test_strange_and_corrupted_inputs_are_asked_about_too() -> None:
    more = ["evaluation.shift=[contrast, rotate]", "evaluation.ood=[{kind: noise}]"]
    plain, all_of_it = (
        workload(load_config(None, knobs), PROBLEM, replace(RATES, answer=1.0))[-1].phases[-1].work
        for knobs in ([], [*more, "dataset.num_calibration=100"])
    )
    images = 300 + 497
    assert all_of_it / plain == pytest.approx((images + 11 * 497 + 100) / images, rel=1e-3)


def test_a_driver_that_is_slower_than_its_workers_is_the_bottleneck() -> None:
    phase = Phase("cohorts", pieces=10_000, seconds=2.0, driver_seconds=0.1)
    assert phase.bound(8) == "cohorts"
    assert phase.wall(512) == 1000.0
    assert phase.bound(512) == "driver, cohorts"


def test_the_default_config_is_counted_as_its_stages_do_it() -> None:
    works = {work.stage: work for work in workload(load_config(None), PROBLEM, RATES)}
    roots, cohorts = works["seeds"].phases
    # 10 epochs of 20 steps, of which the 16 trunks take a quarter and their tails the rest.
    assert (roots.pieces, roots.seconds) == (1, pytest.approx(50 * 16 * 0.001))
    assert (cohorts.pieces, cohorts.seconds) == (1, pytest.approx(150 * 16 * 0.001, rel=1e-4))
    assert works["seeds"].stored_bytes == 4 * 3466 * (128 + 16 + 16)
    gram, directions, training = works["autoencoder"].phases
    assert gram.work == pytest.approx(3466 * 0.5)
    steps = load_config(None).autoencoder.training.steps
    assert (directions.work, training.work) == (3.0, steps * 0.01)
    (learning,) = works["generator"].phases
    assert learning.work == 100 * 0.02
    # Of a generator that may collapse eight models are drawn half-way, and asked about 300 images.
    impatient = load_config(None, ["generator.training.patience=null"])
    _, probes = {w.stage: w for w in workload(impatient, PROBLEM, RATES)}["generator"].phases
    assert probes.work == pytest.approx(8 * 300 * RATES.answer + 4 * PROBLEM.training * 3466 / 1e12)
    assert works["generator"].stored_bytes == 4 * 2000
    assert works["autoencoder"].stored_bytes == 111 * (8 * 112 + 4 * 128) + 4 * 1000
    assert works["samples"].stored_bytes == 4 * 3466 * 48
    # A cohort's models as they come and as a shard; those that a process asks together.
    assert works["seeds"].held_bytes == 2 * 4 * 3466 * 128
    assert works["evaluation"].held_bytes == 256 * 4 * 3466
    ordinary = works["evaluation"].phases[0]
    assert (ordinary.pieces, ordinary.work) == (2, pytest.approx(2 * 200 * 32 * 0.001, rel=1e-4))


def test_tails_are_counted_by_the_runs_that_leave_them() -> None:
    tails = Tails(trunks=40, tails=5, trunk_fraction=0.5, tail_fraction=0.1)
    config = PipelineConfig(seeds=SeedsSection(protocol=tails))
    roots, cohorts = workload(config, PROBLEM, RATES)[0].phases
    # 10 epochs of 20 steps; 40 trunks, by 32, and as many runs of five tails each.
    assert (roots.pieces, roots.seconds) == (2, pytest.approx(100 * 32 * 0.001))
    assert (cohorts.pieces, cohorts.seconds) == (2, pytest.approx(100 * 32 * 0.001))


def test_early_tails_and_annealing_are_counted() -> None:
    tails = Tails(trunks=4, tails=5, early_tails=5, trunk_fraction=0.5, tail_fraction=0.05)
    finish = Finish(annealing=Annealing(fraction=0.1))
    samples = SamplesSection(count=6, shard_size=3, finish=finish)
    config = PipelineConfig(
        seeds=SeedsSection(protocol=tails),
        autoencoder=AutoencoderSection(model=PrincipalMlp(latent_size=8)),
        samples=samples,
    )
    works = {work.stage: work for work in workload(config, PROBLEM, RATES)}
    _, cohorts = works["seeds"].phases
    assert cohorts.work == pytest.approx(100 * 4 * 0.001)
    # Members, whole roots, and a mean of early tails for each trunk.
    assert works["seeds"].stored_bytes == 4 * 3466 * (128 + 4 + 4)
    (shards,) = works["samples"].phases
    assert (shards.pieces, shards.seconds) == (2, pytest.approx(20 * 3 * 0.001, rel=1e-2))


def test_what_does_not_shrink_with_machines_is_named() -> None:
    works = workload(load_config(None), PROBLEM, RATES)
    assert bottleneck(works, 1) == "autoencoder: Gram matrix, K x K x P"
    assert wall_of(works, 512) < wall_of(works, 1)
    few_columns = workload(load_config(None), PROBLEM, replace(RATES, gram_column=0.0))
    assert bottleneck(few_columns, 512) == "evaluation: cohorts"


def test_a_given_rate_replaces_the_measured_one_of_seeds() -> None:
    works = [
        Work("seeds", (Phase("roots", 1, 5.0), Phase("cohorts", 2, 5.0)), 0),
        Work("samples", (Phase("shards", 1, 7.0),), 0),
    ]
    seeds, samples = at_rate(works, models_per_hour=60.0, models=10)
    assert seeds.seconds == pytest.approx(600.0)
    assert samples == works[1]


@pytest.mark.slow
def test_calibration_measures_every_rate_and_leaves_the_test_part_closed(
    monkeypatch: pytest.MonkeyPatch, no_compiler: None
) -> None:
    def opened(self: object) -> Any:
        raise AssertionError("the test part was opened")

    monkeypatch.setattr(Parts, "test", property(opened))
    monkeypatch.setattr(calibration, "MEASURED_SECONDS", 0.02)
    monkeypatch.setattr(calibration, "PIECES", 2)
    config = load_config(None, ["seeds.architecture.hidden=[4]", "seeds.cohort_size=4"])
    dataset = config.dataset.load()
    problem = Problem.of(config, dataset, None)
    assert problem.parameters == 64 * 4 + 4 + 4 * 10 + 10
    assert (problem.members, problem.training, problem.features) == (128, 112, 111)
    rates = calibrate(config, dataset, problem)
    assert rates.step(4) > 0
    for name in ("answer", "coder_step", "denoiser_step", "gram_column", "eigenvectors", "mixed"):
        assert getattr(rates, name) > 0, name
    assert min(rates.piece, rates.write_bytes, rates.read_bytes) > 0


@pytest.mark.slow
def test_of_a_large_network_few_images_and_one_model_are_measured(
    monkeypatch: pytest.MonkeyPatch, no_compiler: None
) -> None:
    seen = []

    def fit(stack: object, theta_KP: Any, *rest: Any) -> None:
        seen.append((len(theta_KP), rest[2].batch_size))

    monkeypatch.setattr(calibration, "fit", fit)
    monkeypatch.setattr(calibration, "MOST_SECONDS", 0.0)
    config = load_config(None, ["seeds.architecture.hidden=[4]", "seeds.recipe.batch_size=40"])
    calibration._classifiers(config, config.dataset.load(), "cpu")
    assert set(seen) == {(1, calibration.FEW_IMAGES)}


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "calibrate", lambda *_: RATES)
    prices = ("price_per_hour.cpu=2.5", "price_per_hour.gpu=9", "samples.resources.gpus=1")
    priced = [word for each in prices for word in ("--set", each)]
    shown = CliRunner().invoke(cli, ["plan", "--nodes", "1,64", *priced]).output
    costs = shown.splitlines()[-3]
    assert costs.startswith("money")
    told = json.loads(CliRunner().invoke(cli, ["plan", "--json", "--nodes", "1", *priced]).stdout)
    walls = told["nodes"]["1"]["wall_seconds"]
    owed = 2.5 * sum(walls.values()) / 3600 + (9 - 2.5) * walls["samples"] / 3600
    assert told["nodes"]["1"]["money"] == pytest.approx(owed)
    assert costs.split()[-2] == f"{owed:.2f}"
    assert "money" not in CliRunner().invoke(cli, ["plan", "--nodes", "1"]).output
    assert "together" in shown
    assert "64 x waits longest for autoencoder: Gram matrix, K x K x P" in shown
    told = CliRunner().invoke(cli, ["plan", "--json", "--nodes", "8"])
    as_data = json.loads(told.stdout)
    assert list(as_data["nodes"]) == ["8"]
    assert as_data["stages"]["generator"]["phases"][0]["seconds"] == 2.0
    wrong = CliRunner().invoke(cli, ["plan", "--nodes", "1,x"])
    assert "--nodes 1,x: expected numbers above 0" in str(wrong.exception)
