"""The stages together, here and on a cluster: variants, representations, new populations."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import MakeConfig, make

from bend_ray import pipeline
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import STAGES
from bend_ray.config.graph import graph_of as plan_of
from bend_ray.config.resources import Resources
from bend_ray.data.examples import Parts
from bend_ray.errors import ClusterError, TrainingError
from bend_ray.parameters.features import Standardizer
from bend_ray.populations.members import read_layout
from bend_ray.report.evaluation import Result
from bend_ray.report.results import table
from bend_ray.runtime.interface import Runtime, from_vectors
from bend_ray.stages.representations import Principal, Standardised
from bend_ray.stages.samples import SampleDrawer
from bend_ray.stages.seed_trainer import SeedTrainer

pytestmark = pytest.mark.trains


def test_the_whole_pipeline_leaves_committed_artifacts_and_nothing_else(
    tiny: MakeConfig, shared_store: Store
) -> None:
    graph = make(tiny(), shared_store)
    for artifact in graph:
        listed = {file.name for file in artifact.manifest().files}
        assert set(artifact.list_files()) == listed
    generated = read_population(graph.samples)
    assert generated.origin == "generated"
    assert generated.model_id.tolist() == list(range(6))
    assert generated.trunk.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.isfinite(generated.theta_KP).all()
    shown = table(Result.of(graph))
    assert "bag of generated" in shown
    assert "originals bag" in shown


def test_a_sample_does_not_depend_on_its_shard(tiny: MakeConfig, shared_store: Store) -> None:
    ours = make(tiny(), shared_store, "samples").samples
    theirs = make(tiny("samples.shard_size=5"), shared_store, "samples").samples
    assert ours.fingerprint != theirs.fingerprint
    np.testing.assert_allclose(
        read_population(ours).theta_KP, read_population(theirs).theta_KP, rtol=1e-5, atol=1e-6
    )


def test_the_principal_representation_decodes_training_members_exactly(
    tiny: MakeConfig, shared_store: Store
) -> None:

    graph = make(tiny(), shared_store, "seeds")
    representation = Principal(Principal.fit(graph.seeds, Runtime())[0])
    members = read_population(graph.seeds)
    coefficients = representation.coefficients_KF[torch.from_numpy(~members.held_out)]
    decoded = representation.decoder(graph.seeds)(coefficients)
    np.testing.assert_allclose(decoded, members.theta_KP[~members.held_out], atol=1e-5)


def test_the_standardised_representation_streams_to_the_same_statistics(
    tiny: MakeConfig, shared_store: Store
) -> None:

    graph = make(tiny(), shared_store, "seeds")
    representation = Standardised(Standardised.fit(graph.seeds, Runtime())[0])
    members = read_population(graph.seeds)
    theta = torch.from_numpy(members.theta_KP)
    training = theta[torch.from_numpy(~members.held_out)]
    expected = Standardizer.fit(read_layout(graph.seeds), [training])
    rows = representation.rows(graph.seeds, training_only=False)
    table = Runtime().table(rows, Resources())
    streamed = from_vectors(table.column("features"))
    np.testing.assert_allclose(streamed, expected.apply(theta), rtol=1e-4, atol=1e-5)
    assert table.column("held_out").to_pylist() == members.held_out.tolist()


@pytest.mark.slow
def test_the_papers_variants_run_end_to_end(tiny: MakeConfig, shared_store: Store) -> None:
    config = tiny(
        "seeds.protocol={kind: trajectory, checkpoints: 12, epochs: 3}",
        "autoencoder.model={kind: conv1d, latent_size: 6, channels: [4, 8], kernel: 3}",
        "generator.denoiser={kind: conv1d, channels: [8, 8], kernel: 3}",
        "generator.process={kind: ddpm, timesteps: 50, prediction: eps}",
        "generator.conditional=false",
        "samples.sampler={kind: ancestral}",
    )
    graph = make(config, shared_store)
    metrics = Result.of(graph).as_json()
    assert 0 <= metrics["bag"]["accuracy"] <= 1
    assert read_population(graph.samples).trunk.tolist() == [0] * 6
    assert metrics["populations"]["generated"]["novelty"]["spread"] > 0


def test_a_flow_runs_end_to_end(tiny: MakeConfig, shared_store: Store) -> None:
    config = tiny("generator.process={kind: flow}", "samples.sampler={kind: heun, steps: 5}")
    graph = make(config, shared_store, "samples")
    assert (read_population(graph.samples).val_accuracy > 0.5).all()


def test_the_test_part_is_opened_by_the_evaluation_alone(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    graph, again = make(config, shared_store, "generator"), plan_of(config, fresh_store)

    class TestOpenedError(Exception):
        pass

    def opened(self: object) -> None:
        raise TestOpenedError

    # What other processes run is run here, in this one.
    monkeypatch.setattr(Parts, "test", property(opened))
    trainer = SeedTrainer(config, again.seeds, config.dataset)
    trainer.train_roots(0)
    trainer.store_roots([0])
    trainer.train_cohort(0)
    SampleDrawer(dataclasses.replace(graph, samples=again.samples), config.dataset).draw(0)
    with pytest.raises(TestOpenedError):
        make(tiny("samples.temperature=0.9"), shared_store)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_what_this_process_gives(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store
) -> None:
    config = tiny("evaluation.rivals=[{kind: deep_ensemble}, {kind: gaussian}]")
    from bend_ray.runtime.on_ray import RayRuntime

    here, there = make(config, shared_store), make(config, fresh_store, runtime=RayRuntime(True))
    assert [a.fingerprint for a in here] == [a.fingerprint for a in there]
    for stage in ("seeds", "samples", "ordinary"):
        ours, theirs = (read_population(made[stage]) for made in (here, there))
        np.testing.assert_array_equal(ours.theta_KP, theirs.theta_KP)
        np.testing.assert_array_equal(ours.val_nll, theirs.val_nll)
    for stage in ("autoencoder", "generator"):
        files = [f.name for f in here[stage].manifest().files if f.name.endswith(".safetensors")]
        assert files
        for name in files:
            assert here[stage].read_bytes(name) == there[stage].read_bytes(name)
    ours, theirs = (Result.of(made).as_json() for made in (here, there))
    assert ours["bag"]["nll"] == theirs["bag"]["nll"]
    assert ours["rivals"]["gaussian"]["nll"] == theirs["rivals"]["gaussian"]["nll"]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_what_a_worker_refuses_comes_out_as_one_line(tiny: MakeConfig, shared_store: Store) -> None:
    config = tiny("samples.temperature=1.0e+38")
    with pytest.raises(TrainingError, match=r"^samples: expected finite parameters, all 6"):
        pipeline.run(config, shared_store.uri, until="samples")


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_more_than_the_cluster_has_is_refused_with_what_there_is(tiny: MakeConfig) -> None:
    from bend_ray.runtime.on_ray import RayRuntime

    config = tiny("latents.resources.cpus=1000")
    with pytest.raises(ClusterError, match=r"latents\.resources.*asked for 1 x \(1000 CPU"):
        RayRuntime(True).preflight(config, STAGES)
    RayRuntime(True).preflight(tiny(), STAGES)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_leaves_stdout_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    lost = {"lines": ["a node is gone"], "pid": "raylet", "is_err": False}
    ray._private.worker.print_to_stdstream(lost, ignore_prefix=False)
    assert capsys.readouterr().out == ""
