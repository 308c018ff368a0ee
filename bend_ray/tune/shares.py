"""How many trials a cluster has room for, so that each always gets what its stages need.

A trial itself holds nothing: it waits for its stages' processes. As many run at once as the cluster
can give the hungriest stage of every one of them, and each takes no more than its share, so no
trial waits for what another holds while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from bend_ray.config.graph import STAGES
from bend_ray.config.resources import ActorResources, Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.runtime import capacity
from bend_ray.runtime.capacity import SPARE_CPUS

DATA_CPUS = 1
"""What Ray Data must be left on a cluster that was joined, or it waits for ever."""


@dataclass(frozen=True)
class Processors:
    """CPUs and GPUs that stages may have."""

    cpus: float
    gpus: float

    @classmethod
    def usable(cls, cpus: float, gpus: float, own: bool) -> Processors:
        """Of a cluster's; ``own``: ``connect`` started it, with more CPUs than cores."""
        return cls(max(1.0, cpus - (SPARE_CPUS if own else DATA_CPUS)), gpus)

    @classmethod
    def of_cluster(cls, own: bool) -> Processors:
        """Of the connected one's, free or not."""
        have = [node.resources for node in capacity.nodes()]
        cpus, gpus = (sum(each.get(kind, 0.0) for each in have) for kind in ("CPU", "GPU"))
        return cls.usable(cpus, gpus, own)

    def over(self, cpus: float, gpus: float) -> int:
        """How many processes of so much fit, at least one."""
        most = int(self.cpus // cpus)
        return max(1, min(most, int(self.gpus // gpus)) if gpus else most)


def room_for(config: PipelineConfig, have: Processors) -> int:
    """Trials at once that there is room for, at least one."""
    needs = [capacity.Request.of(config, stage) for stage in STAGES]
    cpus = max(need.processes * need.resources.cpus for need in needs)
    gpus = max(need.processes * need.resources.num_gpus for need in needs)
    return have.over(cpus, gpus)


def share_of(config: PipelineConfig, have: Processors, trials: int) -> PipelineConfig:
    """The config with every stage held to one trial's share of it all; no result changes."""
    share = Processors(have.cpus / trials, have.gpus / trials)
    asked = {stage: getattr(config, stage).resources for stage in STAGES}
    return config.with_resources(
        {stage: _held(each, share.over(each.cpus, each.num_gpus)) for stage, each in asked.items()}
    )


def _held(resources: Resources, most: int) -> Resources:
    if isinstance(resources, ActorResources):
        return resources.model_copy(update={"workers": min(resources.workers or most, most)})
    if isinstance(resources, TrainResources) and isinstance(resources.workers, tuple):
        least, asked = resources.workers
        return resources.model_copy(update={"workers": (least, max(least, min(asked, most)))})
    return resources
