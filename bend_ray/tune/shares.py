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
    """CPUs and GPUs of a cluster."""

    cpus: float
    gpus: float

    @classmethod
    def of_cluster(cls) -> Processors:
        """Those of the connected one, free or not."""
        resources = [node.resources for node in capacity.nodes()]
        return cls(*(sum(each.get(kind, 0.0) for each in resources) for kind in ("CPU", "GPU")))

    def usable(self, own: bool) -> Processors:
        """What stages may have; ``own``: ``connect`` started it, with more CPUs than cores."""
        return Processors(max(1.0, self.cpus - (SPARE_CPUS if own else DATA_CPUS)), self.gpus)

    def over(self, cpus: float, gpus: float) -> int:
        """How many processes of so much fit, at least one."""
        most = int(self.cpus // cpus)
        return max(1, min(most, int(self.gpus // gpus)) if gpus else most)


def room_for(config: PipelineConfig, have: Processors, own: bool) -> int:
    """Trials at once that a cluster has room for, at least one; ``own``: ``connect`` started it."""
    needs = [capacity.Request.of(config, stage) for stage in STAGES]
    cpus = max(need.processes * need.resources.cpus for need in needs)
    gpus = max(need.processes * need.resources.num_gpus for need in needs)
    return have.usable(own).over(cpus, gpus)


def share_of(config: PipelineConfig, have: Processors, own: bool, trials: int) -> PipelineConfig:
    """The config with every stage held to one trial's share of the cluster; no result changes."""
    usable = have.usable(own)
    share = Processors(usable.cpus / trials, usable.gpus / trials)
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
