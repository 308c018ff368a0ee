"""Tracking: every run also told to MLflow or Weights & Biases, through Ray's own integrations.

One tracking run a ``bend run``, with all stages of it, also those that were there before. Where to
is what the services' own environment says (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
WANDB_PROJECT, WANDB_MODE, ...). What is tracked changes no artifact: a service that fails
after the start is told of and the run goes on.

What an operator watches is for Prometheus: Ray exports it on the driver's node. The driver alone
counts, which outlives its workers. All are counters, as Ray forgets a gauge that is not set again
and again. ``cluster/grafana.json`` is a board of them.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from bend_ray.artifacts.store import Artifact
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.process.environment import variable
from bend_ray.storage.masking import cause, masked_json

logger = logging.getLogger(__name__)

PROJECT = "bend_ray"
"""Experiment or project where the environment names none."""

_ABOUT = {
    "asked": "Models or steps of a stage.",
    "done": "Models or steps that are done.",
    "bytes": "What made stages have written.",
    "seconds": "What made stages took, of: wall, cpu or gpu.",
    "pieces": "Pieces of work that are done.",
    "piece_seconds": "From giving pieces of work away to having them done.",
    "lost": "Processes lost, to: node, memory or itself.",
    "left_out": "Nodes that are given no more work.",
}
_progress: Counter[str] = Counter()


class _MLflow:
    def __init__(self, name: str, config: dict[str, Any]) -> None:
        from ray.air.integrations.mlflow import setup_mlflow

        self._mlflow = setup_mlflow(
            config=config,
            experiment_name=variable("MLFLOW_EXPERIMENT_NAME") or PROJECT,
            run_name=name,
            create_experiment_if_not_exists=True,
            rank_zero_only=False,
        )

    def curve(self, name: str, points: list[tuple[int, float]]) -> None:
        for step, value in points:
            self._mlflow.log_metric(name, value, step=step)

    def figures(self, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values)

    def close(self, succeeded: bool) -> None:
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


class _Wandb:
    def __init__(self, name: str, config: dict[str, Any]) -> None:
        from ray.air.integrations.wandb import setup_wandb

        project = variable("WANDB_PROJECT") or PROJECT
        self._run = setup_wandb(config=config, project=project, name=name, rank_zero_only=False)

    def curve(self, name: str, points: list[tuple[int, float]]) -> None:
        step_name = f"{name}_step"
        self._run.define_metric(name, step_metric=step_name)
        for step, value in points:
            self._run.log({name: value, step_name: step})

    def figures(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


_SERVICES: dict[str, type[_MLflow | _Wandb]] = {"mlflow": _MLflow, "wandb": _Wandb}


def require_installed(config: PipelineConfig) -> None:
    """Refuse, before any work, to track with what is not installed; told by a ConfigError."""
    name = config.tracking
    if name is not None and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"tracking: expected the package {name} for tracking={name}, got none: "
            f"pip install 'bend-ray[{name}]', or leave tracking out"
        )


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Around calls of a service: whatever its client raises is told, and costs no work."""
    try:
        yield
    except Exception as error:
        logger.warning("tracking     %s was not told: %s", what, cause(error))


@contextmanager
def tracking(config: PipelineConfig, evaluation: Artifact) -> Iterator[Callable[[Artifact], None]]:
    """What to call with each stage of a run that the evaluation's fingerprint names.

    A service that does not take us is a ConfigError.
    """
    if config.tracking is None:
        yield lambda artifact: None
        return
    name = f"{evaluation.fingerprint}-seed{config.seed}"
    try:
        service = _SERVICES[config.tracking](name, masked_json(config.model_dump(mode="json")))
    except Exception as error:  # Their clients raise anything; it is the user's to mend.
        raise ConfigError(
            f"tracking: expected {config.tracking} to start a run, got: {cause(error)}; mend its "
            "settings in the environment, or leave tracking out"
        ) from error

    def tell(artifact: Artifact) -> None:
        manifest = artifact.manifest()
        figures = manifest.metrics | {"cost": manifest.cost.model_dump()}
        curve = figures.pop("loss", None)
        with _harmless(artifact.stage):
            if curve is not None:
                service.curve(f"{artifact.stage}/loss", [(int(s), v) for s, v in curve])
            service.figures(dict(_flat(artifact.stage, figures)))

    succeeded = False
    try:
        yield tell
        succeeded = True
    finally:
        with _harmless("the end"):
            service.close(succeeded)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings by ``a/b/c``; what is null or no number is left out."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{prefix}/{key}", each)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield prefix, float(value)


def count(name: str, value: float, **tags: str) -> None:
    """Add to a counter of ``_ABOUT``."""
    if value > 0:  # Ray adds nothing less
        _counter(name, tuple(tags)).inc(value, tags)


def count_progress(stage: str, done: int, total: int) -> None:
    """So much of a stage is done."""
    for name, value in (("asked", total), ("done", done)):
        key = f"{name} {stage}"
        count(name, value - _progress[key], stage=stage)
        _progress[key] = max(value, _progress[key])


@cache
def _counter(name: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter as RayCounter

    return RayCounter(f"bend_{name}_total", _ABOUT[name], tag_keys=tags)
