"""Which GPUs a run takes where ``resources.gpus`` is auto."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from bend_ray.config.graph import STAGES
from bend_ray.config.schema import PipelineConfig

Amounts = Mapping[str, float]
"""Of a node, by Ray's names."""

logger = logging.getLogger(__name__)

OF_CLASSIFIERS = ("seeds", "samples", "evaluation")
SMALL_NETWORK = 2_000_000
"""Parameters below which a process leaves a GPU idle most of the time."""
MOST_ON_A_GPU = 4


def equipped(
    config: PipelineConfig,
    nodes: Sequence[Amounts],
    problem: Callable[[], str],
    num_parameters: Callable[[], int],
) -> PipelineConfig:
    """The config with GPUs for every stage that left them to us; a line says which.

    ``problem`` says why a GPU of the nodes does not work, and is empty where all do;
    ``num_parameters`` is asked about one classifier.
    """
    sections = {stage: getattr(config, stage) for stage in STAGES}
    left = {stage: each for stage, each in sections.items() if each.resources.gpus == "auto"}
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= 1.0]
    given = dict.fromkeys(left, 0.0)
    if left and with_gpus and (why := problem()):
        logger.warning("%-12s all on CPUs: %s", "gpus", why)
    elif asked := [stage for stage in left if with_gpus and stage in OF_CLASSIFIERS]:
        size = num_parameters()
        cpus = max(left[stage].resources.cpus for stage in asked)
        given |= dict.fromkeys(asked, share_of_gpu(size, cpus, with_gpus))
        logger.info(
            "%-12s %g there: %g a process of %s, for networks of %d parameters",
            *("gpus", sum(node["GPU"] for node in with_gpus), given[asked[0]]),
            *(", ".join(asked), size),
        )
    return config.with_resources(
        {
            stage: each.resources.model_copy(update={"gpus": given[stage]})
            for stage, each in left.items()
        }
    )


def share_of_gpu(num_parameters: int, cpus: float, nodes: Sequence[Amounts]) -> float:
    """GPUs a process that has so many CPUs: a whole one for a large network, a fraction for others.

    No smaller a fraction than its node has CPUs for.
    """
    if num_parameters > SMALL_NETWORK:
        return 1.0
    per_gpu = min(node.get("CPU", 0.0) / node["GPU"] for node in nodes)
    return 1 / max(1, min(MOST_ON_A_GPU, int(per_gpu / cpus + 1e-9)))
