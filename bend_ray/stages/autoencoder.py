"""Stage 2, autoencoder: learn latents of the trained population's parameters."""

from __future__ import annotations

from functools import partial

from torch import nn

from bend_ray.artifacts.cost import COST_DIRECTORY, Stopwatch
from bend_ray.config import PipelineConfig
from bend_ray.generation.autoencoders import Autoencoder
from bend_ray.generation.objectives import Reconstruction
from bend_ray.plan import Plan
from bend_ray.stages import cluster
from bend_ray.stages.events import loss_curve, write_events
from bend_ray.stages.fit import TRAIN_DIRECTORY, Job, fit
from bend_ray.stages.representations import FILE, fit_representation

WEIGHTS = "autoencoder.safetensors"


def make(config: PipelineConfig, plan: Plan) -> None:
    """Fit the representation and the autoencoder on the training members, and commit both."""
    artifact, section = plan.autoencoder, config.autoencoder
    with Stopwatch() as watch:
        representation, fit_cost = fit_representation(section.model.features, plan.seeds, artifact)
        fitted = fit(
            Job(
                stage="autoencoder",
                build=partial(build_objective, section.model, representation.num_features),
                training=section.training,
                resources=section.resources,
                seed=config.seed,
                artifact=artifact,
                weights=WEIGHTS,
            ),
            representation.dataset(plan.seeds, training_only=True),
        )
    events = write_events(artifact, loss_curve("autoencoder", fitted.curve, fitted.times))
    artifact.commit(
        files=[FILE, WEIGHTS, events],
        metrics={"num_features": representation.num_features, "loss": fitted.curve},
        cost=cluster.total([fit_cost, fitted.cost], watch.cost.wall_seconds),
    )
    artifact.discard(TRAIN_DIRECTORY)
    artifact.discard(COST_DIRECTORY)


def build_objective(model: Autoencoder, num_features: int) -> nn.Module:
    """The autoencoder with its loss."""
    return Reconstruction(
        model.build(num_features), model.latent_size, model.input_noise, model.latent_noise
    )
