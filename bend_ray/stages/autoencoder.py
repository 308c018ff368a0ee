"""Stage 2, autoencoder: learn latents of the trained population's parameters."""

from __future__ import annotations

from functools import partial

from torch import nn

from bend_ray.artifacts.cost import COST_DIRECTORY, Stopwatch, cost_of_pieces
from bend_ray.artifacts.events import loss_curve, write_events
from bend_ray.artifacts.weights import DIRECTORY
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.generation.models import Autoencoder
from bend_ray.generation.training import Reconstruction
from bend_ray.populations.members import learnt_vectors
from bend_ray.runtime.interface import Runtime
from bend_ray.runtime.loop import TrainingTask
from bend_ray.stages.representations import FILE, fit_representation

WEIGHTS = "autoencoder.safetensors"


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Fit the representation and the autoencoder on the training members, and commit both.

    TrainingError where too few members are left, or the training diverged.
    """
    artifact, section = graph.autoencoder, config.autoencoder
    _check_enough_are_left(config, graph)
    with Stopwatch() as watch:
        representation, fit_cost = fit_representation(
            section.model.features, graph.seeds, artifact, runtime
        )
        fitted = runtime.train(
            TrainingTask(
                stage="autoencoder",
                build=partial(build_objective, section.model, representation.num_features),
                training=section.training,
                resources=section.resources,
                seed=config.seed,
                artifact=artifact,
                weights=WEIGHTS,
            ),
            representation.rows(graph.seeds, training_only=not section.training.patience),
        )
    events = write_events(artifact, loss_curve("autoencoder", fitted.curve, fitted.times))
    artifact.commit(
        files=[FILE, WEIGHTS, events],
        metrics={
            "num_features": representation.num_features,
            "loss": fitted.curve,
            "held_out_loss": fitted.held_out,
        },
        cost=cost_of_pieces([fit_cost, fitted.cost], watch.cost.wall_seconds),
    )
    artifact.discard(DIRECTORY)
    artifact.discard(COST_DIRECTORY)


def _check_enough_are_left(config: PipelineConfig, graph: Graph) -> None:
    """What the config promises of its models, of those that did not diverge."""
    latent_size = config.autoencoder.model.latent_size or 0
    learnt = len(learnt_vectors(graph.seeds)[0])
    if latent_size >= learnt:
        raise TrainingError(
            f"autoencoder: expected more than autoencoder.model.latent_size = {latent_size} "
            f"training members, got {learnt} of {config.num_training_models}, the others diverged; "
            "lower seeds.recipe.optimizer.learning_rate or the latent size"
        )


def build_objective(model: Autoencoder, num_features: int) -> nn.Module:
    """The autoencoder with its loss."""
    return Reconstruction(
        model.build(num_features),
        model.latent_size or num_features,
        model.input_noise,
        model.latent_noise,
    )
