"""What becomes of a training that diverges: tried again once with another seed, else left out.

A model has diverged where its parameters or its validation NLL are not finite. That depends on the
config and the model alone, so however many actors there are, the same ones do. A piece of work that
had such models says so in a note beside its shard, which the commit takes into the manifest. What
reads and writes notes raises StoreError where the store cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bend_ray.artifacts.cost import cost_of_pieces, read_costs
from bend_ray.artifacts.directory import SCRATCH
from bend_ray.artifacts.shards import complete_shards, shard_name
from bend_ray.artifacts.store import Artifact
from bend_ray.errors import TrainingError
from bend_ray.spec import Record
from bend_ray.storage.filesystems import side_by_side

DIRECTORY = f"{SCRATCH}/diverged"
"""What pieces of an artifact say of it, while it is being made."""

Outcome = Literal["retrained", "dropped"]

logger = logging.getLogger(__name__)


class Divergence(Record):
    """A model, or a run of models, that diverged."""

    kind: Literal["root", "run", "sample"]
    """What it was: a root, a run from a root or from scratch, or a drawn model."""
    trunk: int
    """Whose it is."""
    fork: int = -1
    """Which run of that trunk; -1 for a root."""
    seed: int
    """Of the attempt that diverged, the second where there were two."""
    outcome: Outcome
    """Whether another seed did well, or it is left out."""
    models: tuple[int, ...] = ()
    """``model_id`` of the models that are left out."""


def finite_rows(*columns: Tensor) -> Tensor:
    """Of tensors ``(K, ...)``, which of the K rows hold finite numbers only: ``(K,)``."""
    finite = [column.isfinite().unsqueeze(-1).flatten(1).all(dim=1) for column in columns]
    return torch.stack(finite).all(dim=0)


def note(artifact: Artifact, name: str, diverged: Sequence[Divergence]) -> None:
    """Say which models of a piece diverged; nothing where none did."""
    if diverged:
        rows = [each.model_dump() for each in diverged]
        artifact.write_note(f"{DIRECTORY}/{name}.json", rows)


def notes(artifact: Artifact) -> dict[str, list[Divergence]]:
    """What the pieces of an artifact that is being made say, by the piece's name."""
    names = artifact.list_files(f"{DIRECTORY}/")
    found = side_by_side(partial(artifact.read_json, is_note=True), names)
    pieces = (name.removeprefix(f"{DIRECTORY}/").removesuffix(".json") for name in names)
    return {
        piece: [Divergence.model_validate(each) for each in rows]
        for piece, rows in zip(pieces, found, strict=True)
    }


def left_rows(artifact: Artifact, planned: Mapping[int, int]) -> dict[int, int]:
    """Models by shard, of those planned, without what notes leave out; a shard may have none."""
    found = notes(artifact)
    return {
        index: rows - sum(len(each.models) for each in found.get(shard_name(index), ()))
        for index, rows in planned.items()
    }


def done_shards(artifact: Artifact, planned: Mapping[int, int]) -> set[int]:
    """Which shards need not be made again: they are whole, or nothing of them is left."""
    rows = left_rows(artifact, planned)
    empty = {index for index, left in rows.items() if left == 0}
    return complete_shards(artifact, rows) | empty


def commit_left(
    artifact: Artifact,
    planned: Mapping[int, int],
    wall_seconds: float,
    *,
    files: Sequence[str] = (),
    priced: Sequence[str] = (),
    metrics: Mapping[str, object] | None = None,
) -> None:
    """Commit the shards that hold models; what became of others goes to the manifest and the log.

    Beside them it may have further files, pieces whose cost was noted, and metrics.
    """
    left = {shard_name(i): rows for i, rows in left_rows(artifact, planned).items() if rows}
    costs = read_costs(artifact, [*map(shard_name, planned), *priced])
    diverged = _told(artifact, sum(planned.values()))
    artifact.commit(
        files=[*left, *files],
        rows=left,
        metrics={"models": sum(left.values()), "diverged": diverged, **(metrics or {})},
        cost=cost_of_pieces(costs, wall_seconds),
    )


def _told(artifact: Artifact, models: int) -> list[dict[str, object]]:
    """All that diverged; what became of it also goes to the log."""
    diverged = [each for piece in notes(artifact).values() for each in piece]
    found = sorted(diverged, key=lambda each: (each.kind, each.trunk, each.fork, each.models))
    again = sum(each.outcome == "retrained" for each in found)
    dropped = [model for each in found for model in each.models]
    if again:
        logger.warning(
            "%-12s %d trainings diverged and did well with another seed", artifact.stage, again
        )
    if dropped:
        shown = ", ".join(map(str, dropped[:5])) + (", ..." if len(dropped) > 5 else "")
        logger.warning(
            "%-12s %d of %d models diverged and are left out: %s",
            *(artifact.stage, len(dropped), models, shown),
        )
    return [each.model_dump(mode="json") for each in found]


def all_diverged(what: str) -> TrainingError:
    """The error where nothing is left of ``what``."""
    return TrainingError(
        f"seeds: expected finite parameters, {what} diverged, also with other seeds; "
        "lower seeds.recipe.optimizer.learning_rate"
    )
