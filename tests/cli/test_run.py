"""``bend run`` as a user meets it: its result, its second run, and what it refuses."""

import json

import pyarrow.parquet as pq
import pytest
from bend_process import Bend, Finished

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.trains
def test_the_default_run_reaches_what_it_must(bend: Bend) -> None:
    # The floors of design.md section 4, on the fixed split.
    done = bend("run", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    bag, models = result["bag"], result["populations"]
    generated, originals = models["generated"], models["originals"]
    assert bag["accuracy"] >= 0.955
    assert generated["accuracy"]["mean"] >= 0.945
    assert generated["accuracy"]["min"] >= 0.90
    for population in (generated, originals):
        assert bag["accuracy"] > population["accuracy"]["mean"]
        assert bag["accuracy"] > population["accuracy"]["median"]
    assert generated["novelty"]["copies"] == 0
    assert generated["novelty"]["nearest_ratio"] > 0.3
    manifests = list((bend.folder / "bend-store").glob("*/*/manifest.json"))
    assert any(path.parts[-3] == "evaluation" for path in manifests)
    # Another processor may make other figures of this run, so each artifact says what made it.
    assert all("kernels" in json.loads(path.read_text())["versions"] for path in manifests)


def test_the_result_has_the_keys_others_rely_on(undisturbed: Finished) -> None:
    result = json.loads(undisturbed.stdout)
    assert {"accuracy", "nll", "brier", "ece", "size"} <= set(result["bag"])
    models = result["populations"]
    for population in ("generated", "originals"):
        of = models[population]
        assert set(of["accuracy"]) == {"mean", "median", "min", "max", "std"}
        assert set(of["diversity"]) == {"disagreement", "error_iou", "q_statistic"}
    for rival in result["rivals"].values():
        assert {"accuracy", "nll", "ece", "size", "cost_seconds"} <= set(rival)
    block = {
        "nearest_ratio",
        "spread",
        "within_trunk_disagreement",
        "functional_distance",
        "copies",
    }
    assert set(models["generated"]["novelty"]) == set(models["held_out"]["novelty"]) == block
    assert models["originals"]["novelty"] is None
    stages = ["seeds", "autoencoder", "latents", "generator", "samples", "evaluation"]
    assert list(result["fingerprints"]) == stages
    for stage in stages:
        assert set(result["cost"][stage]) == {"cpu_seconds", "gpu_seconds", "wall_seconds"}
    assert result["store"] == str(undisturbed.bend.store)


def test_a_second_run_answers_from_the_store_without_ray(undisturbed: Finished) -> None:
    bend = undisturbed.bend
    again = bend(*bend.run_arguments())
    assert again.returncode == 0
    assert again.stdout == undisturbed.stdout
    assert "ray " not in again.stderr

    told = bend("status", str(bend.config), "--store", str(bend.store))
    # Six stages, and the deep ensemble's population.
    assert [line.split()[2] for line in told.stdout.splitlines()] == ["committed"] * 7


def test_a_run_ends_with_its_report_and_repeats_with_theirs(undisturbed: Finished) -> None:
    bend = undisturbed.bend
    store = ("--store", str(bend.store))
    fingerprint = json.loads(undisturbed.stdout)["fingerprints"]["evaluation"]
    page = bend.store / "report" / fingerprint / "report.html"
    assert page.exists()
    assert (page.parent / "nll_by_cost.png").exists()
    events = {path.parent.parent.name for path in bend.store.glob("*/*/events.out.tfevents.*")}
    assert events == {"seeds", "autoencoder", "generator"}

    # The run that is there is the first of the two: the other one is made, and both are told of.
    both = bend("run", str(bend.config), *store, "--repeats", "2", "--json", "both.json")
    assert both.returncode == 0, both.stderr
    assert "starting on this machine" in both.stderr
    told = json.loads((bend.folder / "both.json").read_text())
    assert told["repeats"][0] == json.loads(undisturbed.stdout)
    seeds = [each["fingerprints"]["seeds"] for each in told["repeats"]]
    assert seeds[0] != seeds[1]
    assert told["aggregate"]["bag"]["accuracy"]["sd"] >= 0
    assert "test part, 2 repeats" in both.stdout
    assert "report: " in both.stdout.splitlines()[-1]

    again = bend("report", *store, "--output", "shown")
    assert again.returncode == 0, again.stderr
    assert "mean of 2 repeats" in (bend.folder / "shown" / "report.html").read_text()
    compared = bend("compare", str(bend.store), "both.json")
    assert compared.returncode == 0, compared.stderr
    assert len([line for line in compared.stdout.splitlines() if "  2  " in line]) == 2


def test_what_the_cluster_can_never_give_is_refused_before_any_work(bend: Bend) -> None:
    done = bend(*bend.run_arguments("--set", "generator.resources.gpus=1"))
    assert done.returncode == 2
    assert "generator.resources" in done.stderr.splitlines()[-1]
    assert "asked for 1 x (1 CPU, 1 GPU)" in done.stderr.splitlines()[-1]
    assert not (bend.store / "seeds").exists()


def test_two_runs_on_one_store_at_once_make_it_once(joining: Bend, undisturbed: Finished) -> None:
    arguments = ["seeds", str(joining.config), "--store", str(joining.store)]
    processes = [joining.start(*arguments) for _ in range(2)]
    outcomes = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert "waiting" in outcomes[0][1] + outcomes[1][1]
    shards = sorted(joining.store.glob("seeds/*/shard-*.parquet"))
    assert shards
    for shard in shards:
        alone = undisturbed.bend.store / shard.relative_to(joining.store)
        assert pq.read_table(shard)["theta_000"].equals(pq.read_table(alone)["theta_000"])
