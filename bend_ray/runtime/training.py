"""Ray Train around the loop: workers on any nodes, replaced when they die.

Nobody replaces Ray Train's controller but we, be it dead or at a loss because one of its own
helpers is.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray.data
import ray.train
import ray.train.torch

from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY
from bend_ray.errors import BendError, StoreError, TrainingError
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.causes import LOST, told
from bend_ray.runtime.loop import PROGRESS_SECONDS, Fitted, Team, TrainingTask, train
from bend_ray.runtime.nodes import Nodes, bundle, expect, versions

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 2
_OF_THE_CONTROLLER = (ray.train.ControllerError, *LOST)


def fit(job: TrainingTask, dataset: ray.data.Dataset, nodes: Nodes) -> Fitted:
    """Train ``job`` on all rows of ``dataset`` and store the weights.

    TrainingError where it diverged, or its workers or Ray Train's controller failed more often
    than they may; one of ``causes.LOST`` where the controller's process died so often.
    """
    deaths = 0
    while True:
        try:
            fitted: Fitted = _watched(_trainer(job, dataset, nodes), job, nodes).return_value
            return fitted
        except (ray.train.TrainingFailedError, *LOST) as error:
            failures = [*getattr(error, "worker_failures", {}).values()]
            for cause in failures:
                if isinstance(cause, BendError):
                    raise cause from error
            deaths, stage = deaths + 1, job.artifact.stage
            # Nor does Ray Train shun a node.
            may_help = isinstance(error, _OF_THE_CONTROLLER) or nodes.check()
            if deaths > MOST_ATTEMPTS or not may_help:
                if not isinstance(error, ray.train.TrainingFailedError):
                    raise
                reason = [*failures, getattr(error, "controller_failure", error)][0]
                raise TrainingError(
                    f"{stage}: the training kept failing: {told(reason)}; checkpoints are kept: "
                    "run again"
                ) from error
            logger.info("%-12s begins again where it was: %s", stage, told(error))


class Folderless(pyarrow.fs.SubTreeFileSystem):  # type: ignore[misc]
    """A bucket in which making a folder asks for nothing, as there are none.

    pyarrow would ask whether the bucket exists: with rights on a part of it that is refused
    (https://github.com/apache/arrow/issues/49949).
    """

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        """Nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Folderless, (self.base_path, self.base_fs)


def _storage(artifact: Artifact) -> tuple[str, pyarrow.fs.FileSystem]:
    """Where Ray Train keeps what it must know after a death."""
    path, filesystem = artifact.child(DIRECTORY), artifact.filesystem
    if filesystem.type_name == "local":
        return path, filesystem
    bucket, _, inside = path.partition("/")
    return inside, Folderless(bucket, filesystem)


def _trainer(
    job: TrainingTask, dataset: ray.data.Dataset, nodes: Nodes
) -> ray.train.torch.TorchTrainer:
    resources = job.section.resources
    path, filesystem = _storage(job.artifact)
    return ray.train.torch.TorchTrainer(
        _train,
        train_loop_config={"job": job, "versions": versions()},
        datasets={"train": dataset.materialize()},
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.num_gpus > 0,
            resources_per_worker=bundle(resources),
            placement_strategy=resources.placement.upper(),
            label_selector=nodes.selector(resources) or None,
        ),
        torch_config=ray.train.torch.TorchConfig(timeout_s=120),
        run_config=ray.train.RunConfig(
            name=job.artifact.fingerprint,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=5, controller_failure_limit=3),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _watched(trainer: ray.train.torch.TorchTrainer, job: TrainingTask, nodes: Nodes) -> Any:
    """The trainer's result; shows meanwhile what rank 0 says in the artifact.

    The trainer runs in a thread: in the main one it would take SIGINT for itself, and keep it
    after its end.
    """
    outcome: Future[Any] = Future()

    def fitting() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    stage, steps = job.artifact.stage, job.section.training.steps
    threading.Thread(target=fitting, daemon=True, name=stage).start()
    with ProgressLine(stage, steps, "steps") as line:
        while True:
            try:
                return outcome.result(timeout=PROGRESS_SECONDS)
            except TimeoutError:
                if outcome.done():
                    raise
            nodes.look()
            # A line that cannot be shown is no reason to end the training.
            with suppress(StoreError):
                if (progress := job.artifact.progress()) is not None:
                    line.update(progress.done)


def _train(config: dict[str, Any]) -> Fitted:
    """What every worker of Ray Train runs."""
    expect(config["versions"])
    job: TrainingTask = config["job"]
    context = ray.train.get_context()
    batches = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=None, batch_format="pyarrow"
    )

    replicated = partial(ray.train.torch.prepare_model, move_to_device=False)
    team = Team(context.get_world_rank(), context.get_world_size(), replicated)
    return train(job, pa.concat_tables(list(batches)), team)
