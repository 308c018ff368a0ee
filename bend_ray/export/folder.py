"""The exported bag as a folder on a disk or in an object store; ``config.json`` comes last."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.fs
import safetensors.torch
import torch
from torch import Tensor

from bend_ray.artifacts.directory import to_json
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Parts
from bend_ray.ensemble.votes import Vote, fit_temperature
from bend_ray.errors import ConfigError, StoreError
from bend_ray.export.card import CARD, MEMBER_ONNX, MEMBERS, Card, TestScores, plain, version_of
from bend_ray.export.guide import guide
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.populations.members import member_facts, member_states
from bend_ray.report.evaluation import BagScores, Evaluation
from bend_ray.storage.filesystems import resolve, store_errors, write_atomically
from bend_ray.storage.masking import masked, utf8
from bend_ray.version import __version__

GUIDE, ONNX = "README.md", "bag.onnx"
_OURS = frozenset({CARD, MEMBERS, GUIDE, ONNX, f"{ONNX}.data", MEMBER_ONNX})
# A protobuf may hold 2 GiB; above this the tensors go to a file of their own.
INLINE_BYTES = 2**30


def export_bag(
    config: PipelineConfig,
    graph: Graph,
    output: str,
    *,
    with_onnx: bool = True,
    members: int | None = None,
) -> Card:
    """Write the bag that a config's evaluation chose.

    Args:
        config: of the pipeline.
        graph: its artifacts.
        output: a folder or URI; new, empty, or an earlier export, which is replaced.
        with_onnx: whether to write ONNX programs beside the members' tensors.
        members: take the first so many of the bag alone; None for all.

    Returns:
        The card of what was written.

    Raises:
        StoreError: there is no evaluation, or something cannot be read or written.
        ConfigError: more members than the bag has, or a folder with something else in it.
    """
    filesystem, path = resolve(output)
    _refuse_strangers(filesystem, path, output)
    card, state_K = _bag(config, graph, members)
    with tempfile.TemporaryDirectory() as scratch:
        write_bag(Path(scratch), card, state_K, with_onnx=with_onnx)
        _publish(Path(scratch), filesystem, path)
    return card


def write_bag(
    folder: Path, card: Card, state_K: Mapping[str, Tensor], *, with_onnx: bool = True
) -> None:
    """Write any bag, evaluated or not, into a local folder.

    Args:
        folder: must be there.
        card: of the bag.
        state_K: its members' tensors, stacked.
        with_onnx: whether to write ONNX programs beside them.
    """
    if with_onnx:
        _write_onnx(folder, card, state_K)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in state_K.items()},
        folder / MEMBERS,
        {"model_version": card.model_version},
    )
    (folder / GUIDE).write_text(guide(card, with_onnx=with_onnx), encoding="utf-8")
    (folder / CARD).write_bytes(to_json(plain(card)))


def _bag(
    config: PipelineConfig, graph: Graph, members: int | None
) -> tuple[Card, dict[str, Tensor]]:
    """What votes, and how: the card, and the tensors it is about."""
    bag = _evaluated(graph)
    voters = list(bag.members or ())
    if members is not None and not 1 <= members <= len(voters):
        raise ConfigError(
            f"--members {members}: expected 1 to {len(voters)}, as many as the bag has"
        )
    _, val_nll_E = member_facts(graph, voters[:members])
    shares = _shares(config.evaluation.vote, voters[:members], val_nll_E)
    rows = list(shares)
    dataset = config.dataset.load()
    mean, std = _channels(dataset)
    card = Card(
        model_version=version_of(graph.evaluation.fingerprint, members),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bend_ray=__version__,
        architecture=config.seeds.architecture,
        image_shape=dataset.input_shape,
        pixel_mean=tuple(mean.flatten().tolist()),
        pixel_std=tuple(std.flatten().tolist()),
        decoding=dataset.decoding,
        class_names=tuple(map(utf8, dataset.class_names)),
        vote=config.evaluation.vote,
        members=tuple(member_facts(graph, rows)[0]),
        weights=tuple(shares.values()),
        temperature=bag.temperature or 1.0,
        scores=None if members else TestScores.of(bag),
    )
    state_K = member_states(config, graph, rows, card.image_shape, len(card.class_names))
    if members is not None and config.evaluation.temperature_scaling:
        temperature = _fitted_temperature(card, state_K, dataset)
        card = card.model_copy(update={"temperature": temperature})
    return card, state_K


def _channels(dataset: Parts) -> tuple[Tensor, Tensor]:
    statistics = dataset.statistics
    if not isinstance(statistics, tuple) or isinstance(dataset.input_shape, dict):
        raise ConfigError("expected a bag of images to export, got one of other inputs")
    return statistics


def _evaluated(graph: Graph) -> BagScores:
    if not graph.evaluation.exists():
        raise StoreError(
            f"expected evaluation {graph.evaluation.fingerprint} in "
            f"{masked(graph.evaluation.store.uri)}, got none; run `bend run` with the same config "
            "and --store first"
        )
    return Evaluation.of(graph.evaluation.manifest()).bag


def _shares(vote: Vote, voters: Sequence[int], val_nll_E: Tensor) -> dict[int, float]:
    """Each member's share of the vote, in voting order; who has none is left out."""
    weight_E = vote.weights(val_nll_E)
    whole = float(weight_E.sum())
    weights: Counter[int] = Counter()
    for voter, weight in zip(voters, weight_E.tolist(), strict=True):
        weights[voter] += weight  # a greedy bag may choose a member twice
    return {voter: weight / whole for voter, weight in weights.items() if weight > 0}


@torch.no_grad()
def _fitted_temperature(card: Card, state_K: Mapping[str, Tensor], dataset: Parts) -> float:
    """The temperature at which the bag's NLL on validation images is least."""
    module = card.architecture.build(card.image_shape, len(card.class_names))
    layout = ParameterLayout.of(module)
    stack = Stack(module, layout, form_for(module, "cpu", dataset.shown(1)))
    images = dataset.normalise(dataset.validation.inputs)
    logits_KNC = predict_logits(stack, layout.flatten(dict(state_K)), images)
    weights_K = torch.tensor(card.weights, dtype=torch.float64)
    probs_NC = torch.einsum("k,knc->nc", weights_K, card.vote.ballots(logits_KNC))
    return fit_temperature(probs_NC, dataset.validation.labels_N)


def _write_onnx(folder: Path, card: Card, state_K: Mapping[str, Tensor]) -> None:
    import onnx

    from bend_ray.export.graphs import bag_program
    from bend_ray.export.layers import member_graph

    module = card.architecture.build(card.image_shape, len(card.class_names))
    member = member_graph(module, card.image_shape, len(card.class_names))
    arrays = {name: tensor.numpy() for name, tensor in state_K.items()}
    large = sum(array.nbytes for array in arrays.values()) > INLINE_BYTES
    onnx.save_model(member, str(folder / MEMBER_ONNX))
    onnx.save_model(
        bag_program(card, member, arrays),
        str(folder / ONNX),
        save_as_external_data=large,
        location=f"{ONNX}.data",
    )


def _publish(folder: Path, filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Copy everything to where it shall be, and nothing of an earlier export beside it.

    Its card goes first, so that what is left by a failure is no export.
    """
    for earlier in (f"{path}/{name}" for name in (CARD, *sorted(_OURS - {CARD}))):
        with store_errors("replace", earlier):
            if filesystem.get_file_info(earlier).type != pyarrow.fs.FileType.NotFound:
                filesystem.delete_file(earlier)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == CARD):
        with write_atomically(filesystem, f"{path}/{file.name}") as target, file.open("rb") as own:
            shutil.copyfileobj(own, target, 2**22)


def _refuse_strangers(filesystem: pyarrow.fs.FileSystem, path: str, output: str) -> None:
    with store_errors("list", path):
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    if strangers := sorted({entry.base_name for entry in found} - _OURS):
        raise ConfigError(
            f"--output {masked(output)}: expected a new or empty folder, or an earlier export, got "
            f"one with {', '.join(strangers[:3])}; name another"
        )
