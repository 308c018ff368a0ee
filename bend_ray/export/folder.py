"""The exported bag, made of what a store holds."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import SINGLE
from bend_ray.data.columns import Column, iso
from bend_ray.data.examples import Examples, Parts, Statistics
from bend_ray.data.streaming import Streamed
from bend_ray.ensemble.predictions import block_size
from bend_ray.ensemble.programs import LOG_VARIANCES, check_names
from bend_ray.ensemble.votes import Vote
from bend_ray.errors import ConfigError
from bend_ray.export import files
from bend_ray.export.card import IMAGES, TOLERANCE, Card, Input, Scored, noise, version_of
from bend_ray.export.files import MEMBER_ONNX, ONNX
from bend_ray.export.graphs import bag_program, forms
from bend_ray.export.members import Members, member_graph, network_of
from bend_ray.populations.members import member_states
from bend_ray.populations.networks import Classifiers
from bend_ray.process import log
from bend_ray.report.evaluation import Evaluation
from bend_ray.storage.masking import cause, utf8
from bend_ray.version import __version__

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
    """Write the bag that a config's evaluation chose, or its first ``members`` alone.

    The output is a folder or URI: new, empty, or an earlier export, which is replaced. Beside the
    members' tensors there are ONNX programs, or not. StoreError where there is no evaluation, or
    something cannot be read or written; ConfigError where the bag has fewer members, or something
    else is in the folder.
    """
    files.refuse_strangers(output)
    card, state_K = bag_of(config, graph, members)
    return publish_bag(output, card, state_K, with_onnx=with_onnx)


def publish_bag(
    output: str | Path, card: Card, state_K: Mapping[str, Tensor], *, with_onnx: bool = True
) -> Card:
    """Write any bag, evaluated or not, to a folder or URI; returns its card as written.

    ConfigError where an input is called as an output is, or by nothing.
    """
    check_names(card.inputs, card.task.outputs)
    examples, each_KNA = noise(card), None
    try:
        ballots = card.task.ballots(Members(card, state_K).logits(examples))
        each_KNA = card.task.answers(ballots).numpy()
    except (IndexError, RuntimeError, ValueError) as error:
        # A network may ask more of its inputs than to be in their range.
        log.LOGGER.info("export       not tried on noise: %s", cause(error))
    warmup: tuple[tuple[float, ...], ...] = ()
    if each_KNA is not None and np.isfinite(each_KNA).all():
        mean_NA = np.einsum("k,kna->na", card.weights, each_KNA)
        warmup = tuple(tuple(float(f"{x:.9g}") for x in row) for row in mean_NA.tolist())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if not with_onnx or not _write_onnx(folder, card, state_K, each_KNA):
            card = card.model_copy(update={"onnx": None})
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in state_K.items()},
            folder / files.MEMBERS,
            {"model_version": card.model_version},
        )
        digests = {path.name: files.digest(path) for path in sorted(folder.iterdir())}
        (folder / files.GUIDE).write_text(guide(card), encoding="utf-8")
        card = card.model_copy(update={"files": digests, "warmup": warmup}).write(folder)
        files.publish(folder, str(output))
    return card


def guide(card: Card) -> str:
    """The README's text: how to load the bag with nothing of ours; the tests run its blocks."""
    # Markdown, of which nothing is for browsers.
    environment = jinja2.Environment(  # noqa: S701
        loader=jinja2.PackageLoader("bend_ray", "export"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("guide.md.j2")
    return template.render(card=card, iso=iso, log_variances=LOG_VARIANCES)


def bag_of(
    config: PipelineConfig, graph: Graph, members: int | None = None
) -> tuple[Card, dict[str, Tensor]]:
    """What votes, and how: the card, and the tensors it is about; errors as of ``export_bag``."""
    evaluation = Evaluation.committed(graph.evaluation.manifest())
    bag = evaluation.bag
    voters = list(bag.members or ())
    if members is not None and not 1 <= members <= len(voters):
        raise ConfigError(
            f"--members {members}: expected 1 to {len(voters)}, as many as the bag has"
        )
    generated = read_population(graph.samples, theta=False)
    val_nll_E = torch.from_numpy(generated.val_nll[voters[:members]]).double()
    shares = _shares(config.evaluation.vote, voters[:members], val_nll_E)
    rows = list(shares)
    dataset = config.dataset.load()
    inputs = _inputs(dataset)
    card = Card(
        model_version=version_of(graph.evaluation.fingerprint, members),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bend_ray=__version__,
        architecture=config.seeds.architecture,
        inputs=inputs,
        decoding=dataset.decoding,
        task=dataset.task,
        class_names=tuple(map(utf8, dataset.class_names)),
        vote=config.evaluation.vote,
        members=tuple(generated.model_id[rows].tolist()),
        weights=tuple(shares.values()),
        temperature=bag.temperature or 1.0,
        scores=Scored(part=evaluation.part, **_figures(bag.model_dump())),
        calibration=evaluation.calibration,
        dataset=config.dataset.kind,
    )
    state_K = member_states(config, graph, rows, card.input_shape, card.num_outputs)
    return card if members is None else measured(config, card, state_K, dataset), state_K


def measured(
    config: PipelineConfig, card: Card, state_K: Mapping[str, Tensor], dataset: Parts
) -> Card:
    """At a temperature of its own, by validation examples, with its own scores and promises."""
    task, held, scale = card.task, dataset.calibration, 1.0
    said = partial(votes, Classifiers(config, dataset, "cpu"), card, state_K)
    if config.evaluation.temperature_scaling:
        scale = task.fit_scale(said(dataset.validation), dataset.validation.labels_N)

    def answers(examples: Examples | Streamed) -> Tensor:
        return task.scaled(said(examples), scale)

    calibration = held and task.calibration(answers(held), held.labels_N)
    figures = _figures(task.scores(answers(dataset.test), dataset.test.labels_N))
    scores = Scored(part="test" if dataset.load_test else "validation", **figures)
    told = {"temperature": scale, "calibration": calibration, "scores": scores}
    return card.model_copy(update=told)


def _figures(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """What a card tells of scores; what is not finite is null."""
    own = {name: scores.get(name) for name in Scored.model_fields if name != "part"}
    return {n: x if x is not None and math.isfinite(x) else None for n, x in own.items()}


def _inputs(dataset: Parts) -> dict[str, Input]:
    """What the network is given, by name; of a table its raw columns."""
    if dataset.columns:
        return {utf8(name): raw_input(column) for name, column in dataset.columns.items()}
    train, statistics = dataset.train, dataset.statistics
    given = train.inputs if isinstance(train, Examples) else train.take(slice(1))
    if isinstance(given, dict) and isinstance(statistics, dict):
        return {utf8(name): _input(values, statistics[name]) for name, values in given.items()}
    assert isinstance(given, Tensor)
    assert not isinstance(statistics, dict)
    if dataset.decoding is None:
        return {SINGLE: _input(given, statistics)}
    return {IMAGES: _input(given, statistics, dataset.decoding.pixel_max)}


def raw_input(column: Column) -> Input:
    """A column as it comes."""
    if column.kind == "category":
        return Input(shape=(), dtype="string", column=column)
    low, high = column.knots[0], column.knots[-1]
    return Input(shape=(), dtype="float64", low=low, high=high, column=column)


def _input(values: Tensor, statistics: Statistics, most: int = 255) -> Input:
    is_pixels = values.dtype == torch.uint8
    low, high = (0, most) if is_pixels else (each.item() for each in values.aminmax())
    mean, std = statistics if statistics is not None else (None, None)
    return Input(
        shape=tuple(values.shape[1:]),
        dtype=str(values.dtype).removeprefix("torch."),
        mean=None if mean is None else tuple(mean.flatten().tolist()),
        std=None if std is None else tuple(std.flatten().tolist()),
        low=low,
        high=high,
    )


def _shares(vote: Vote, voters: Sequence[int], val_nll_E: Tensor) -> dict[int, float]:
    """Each member's share of the vote, in voting order; who has none is left out."""
    weight_E = vote.weights(val_nll_E)
    whole = float(weight_E.sum())
    weights: Counter[int] = Counter()
    for voter, weight in zip(voters, weight_E.tolist(), strict=True):
        weights[voter] += weight  # a greedy bag may choose a member twice
    return {voter: weight / whole for voter, weight in weights.items() if weight > 0}


def votes(
    classifiers: Classifiers,
    card: Card,
    state_K: Mapping[str, Tensor],
    examples: Examples | Streamed,
) -> Tensor:
    """What members say together of examples, at no temperature: answers_NA."""
    theta_KW = classifiers.whole.flatten(state_K)
    weights_K = torch.tensor(card.weights, dtype=torch.float64)
    size = block_size(len(card.members), card.num_outputs)
    found = []
    for outputs_KNO in classifiers.answers(theta_KW, examples, most=size):
        ballots_KNA = card.vote.ballots(outputs_KNO, card.task)
        found.append(card.task.answers(torch.einsum("k,kna->na", weights_K, ballots_KNA)))
    return torch.cat(found)


def _write_onnx(
    folder: Path, card: Card, state_K: Mapping[str, Tensor], each_KNA: NDArray[Any] | None
) -> bool:
    """Write the programs, or nothing where they do not say what torch says about ``noise``."""
    try:
        member = member_graph(network_of(card), card)
        arrays = {name: tensor.numpy() for name, tensor in state_K.items()}
        large = sum(array.nbytes for array in arrays.values()) > INLINE_BYTES
        onnx.save_model(member, str(folder / MEMBER_ONNX))
        onnx.save_model(
            bag_program(card, member, arrays, forms(member)[0]),
            str(folder / ONNX),
            save_as_external_data=large,
            location=f"{ONNX}.data",
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / ONNX), options)
        if each_KNA is not None:
            said = dict(zip(card.outputs, session.run(None, noise(card)), strict=True))
            off = card.differs(card.task.member_answers(said), each_KNA.swapaxes(0, 1))
            if not off < TOLERANCE:
                raise ValueError(f"expected answers as of torch, got {off:.1g} off")
    except Exception as error:  # of torch's exporter, of onnx, of a user's network
        if card.architecture.kind != "imported":
            raise
        first = error
        while isinstance(first.__cause__, Exception):
            first = first.__cause__
        log.LOGGER.warning("export       no ONNX: %s: %s", type(first).__name__, cause(first))
        for name in (MEMBER_ONNX, ONNX, f"{ONNX}.data"):
            (folder / name).unlink(missing_ok=True)
        return False
    return True
