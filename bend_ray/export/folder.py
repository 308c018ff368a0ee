"""The exported bag, made of what a store holds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from bend_ray.artifacts.directory import to_json
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import SINGLE
from bend_ray.data.columns import Column
from bend_ray.data.examples import Examples, Inputs, Parts, Statistics, pieces
from bend_ray.data.streaming import Streamed
from bend_ray.ensemble.predictions import block_size
from bend_ray.ensemble.votes import Vote, fit_temperature
from bend_ray.errors import ConfigError, StoreError
from bend_ray.export.card import (
    CARD,
    IMAGES,
    OUTPUTS,
    TOLERANCE,
    Card,
    Input,
    Scored,
    noise,
    version_of,
)
from bend_ray.export.files import (
    GUIDE,
    MEMBER_ONNX,
    MEMBERS,
    ONNX,
    digest,
    publish,
    refuse_strangers,
)
from bend_ray.export.members import Members, network_of
from bend_ray.populations.members import member_facts, member_states
from bend_ray.process import log
from bend_ray.report.evaluation import Evaluation
from bend_ray.storage.masking import cause, masked, utf8
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
    """Write the bag that a config's evaluation chose.

    Args:
        config: of the pipeline.
        graph: its artifacts.
        output: a folder or URI; new, empty, or an earlier export, which is replaced.
        with_onnx: whether to write ONNX programs beside the members' tensors.
        members: take the first so many of the bag alone; None for all.

    Raises:
        StoreError: there is no evaluation, or something cannot be read or written.
        ConfigError: more members than the bag has, or a folder with something else in it.
    """
    refuse_strangers(output)
    card, state_K = bag_of(config, graph, members)
    with tempfile.TemporaryDirectory() as scratch:
        card = write_bag(Path(scratch), card, state_K, with_onnx=with_onnx)
        publish(Path(scratch), output)
    return card


def write_bag(
    folder: Path, card: Card, state_K: Mapping[str, Tensor], *, with_onnx: bool = True
) -> Card:
    """Write any bag, evaluated or not, into a local folder; returns its card as written."""
    examples, probs_KNC = noise(card), None
    try:
        probs_KNC = Members(card, state_K).logits(examples).double().softmax(dim=-1)
    except (IndexError, RuntimeError, ValueError) as error:
        # A network may ask more of its inputs than to be in their range.
        log.LOGGER.info("export       not tried on noise: %s", cause(error))
    if not with_onnx or not _write_onnx(folder, card, state_K, probs_KNC):
        card = card.model_copy(update={"onnx": None})
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in state_K.items()},
        folder / MEMBERS,
        {"model_version": card.model_version},
    )
    digests = {path.name: digest(path) for path in sorted(folder.iterdir())}
    (folder / GUIDE).write_text(guide(card), encoding="utf-8")
    warmup: tuple[tuple[float, ...], ...] = ()
    if probs_KNC is not None and probs_KNC.isfinite().all():
        weights_K = torch.tensor(card.weights, dtype=torch.float64)
        mean_NC = torch.einsum("k,knc->nc", weights_K, probs_KNC)
        warmup = tuple(tuple(round(p, 8) for p in row) for row in mean_NC.tolist())
    card = card.model_copy(update={"files": digests, "warmup": warmup}).sealed()
    (folder / CARD).write_bytes(to_json(card.model_dump(mode="json")))
    return card


def guide(card: Card) -> str:
    """The README's text: how to load the bag with nothing of ours; the tests run its blocks."""
    template = (files("bend_ray.export") / "guide.md.j2").read_text(encoding="utf-8")
    # Markdown, of which nothing is for browsers.
    environment = jinja2.Environment(  # noqa: S701
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    scores = card.scores
    return environment.from_string(template).render(
        card=card,
        size=len(card.members),
        channels=card.image_shape[0] if card.decoding else None,
        scored=scores is not None and None not in (scores.accuracy, scores.nll),
    )


def bag_of(
    config: PipelineConfig, graph: Graph, members: int | None = None
) -> tuple[Card, dict[str, Tensor]]:
    """What votes, and how: the card, and the tensors it is about; errors as of ``export_bag``."""
    evaluation = _evaluated(graph)
    bag = evaluation.bag
    voters = list(bag.members or ())
    if members is not None and not 1 <= members <= len(voters):
        raise ConfigError(
            f"--members {members}: expected 1 to {len(voters)}, as many as the bag has"
        )
    _, val_nll_E = member_facts(graph, voters[:members])
    shares = _shares(config.evaluation.vote, voters[:members], val_nll_E)
    rows = list(shares)
    dataset = config.dataset.load()
    if not dataset.task.has_classes:
        raise ConfigError(
            "export: expected classes, of which a program tells probabilities, got a "
            f"{dataset.task.kind}; see the report, or use bend_ray.sklearn.BagRegressor"
        )
    card = Card(
        model_version=version_of(graph.evaluation.fingerprint, members),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bend_ray=__version__,
        architecture=config.seeds.architecture,
        inputs=_inputs(dataset),
        decoding=dataset.decoding,
        class_names=tuple(map(utf8, dataset.class_names)),
        vote=config.evaluation.vote,
        members=tuple(member_facts(graph, rows)[0]),
        weights=tuple(shares.values()),
        temperature=bag.temperature or 1.0,
        scores=None
        if members
        else Scored(
            part=evaluation.part,
            **bag.model_dump(include={"accuracy", "nll", "brier", "ece"}),
        ),
        calibration=None if members else evaluation.calibration,
        dataset=config.dataset.kind,
    )
    state_K = member_states(config, graph, rows, card.input_shape, len(card.class_names))
    if members is not None and config.evaluation.temperature_scaling:
        validation = dataset.validation
        temperature = fit_temperature(votes(card, state_K, validation), validation.labels_N)
        card = card.model_copy(update={"temperature": temperature})
    return card, state_K


def _inputs(dataset: Parts) -> dict[str, Input]:
    """What the network is given, by name; of a table its raw columns."""
    if dataset.columns:
        return {_told(name): raw_input(column) for name, column in dataset.columns.items()}
    train, statistics = dataset.train, dataset.statistics
    given = train.inputs if isinstance(train, Examples) else train.take(slice(1))
    if isinstance(given, dict) and isinstance(statistics, dict):
        return {utf8(name): _input(values, statistics[name]) for name, values in given.items()}
    assert isinstance(given, Tensor)
    assert not isinstance(statistics, dict)
    if dataset.decoding is None:
        return {SINGLE: _input(given, statistics)}
    return {IMAGES: _input(given, statistics, dataset.decoding.pixel_max)}


def _told(name: str) -> str:
    """A column's name; ConfigError where an output of the program has it."""
    if name in OUTPUTS:
        raise ConfigError(f"{name}: expected a column that is called otherwise, as outputs are")
    return utf8(name)


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


def _evaluated(graph: Graph) -> Evaluation:
    if not graph.evaluation.exists():
        raise StoreError(
            f"expected evaluation {graph.evaluation.fingerprint} in "
            f"{masked(graph.evaluation.store.uri)}, got none; run `bend run` with the same config "
            "and --store first"
        )
    return Evaluation.committed(graph.evaluation.manifest())


def _shares(vote: Vote, voters: Sequence[int], val_nll_E: Tensor) -> dict[int, float]:
    """Each member's share of the vote, in voting order; who has none is left out."""
    weight_E = vote.weights(val_nll_E)
    whole = float(weight_E.sum())
    weights: Counter[int] = Counter()
    for voter, weight in zip(voters, weight_E.tolist(), strict=True):
        weights[voter] += weight  # a greedy bag may choose a member twice
    return {voter: weight / whole for voter, weight in weights.items() if weight > 0}


def votes(card: Card, state_K: Mapping[str, Tensor], examples: Examples | Streamed) -> Tensor:
    """What members say together of examples, at no temperature: probs_NC."""
    members = Members(card, state_K)
    weights_K = torch.tensor(card.weights, dtype=torch.float64)

    def ask(inputs: Inputs) -> Tensor:
        named = inputs if isinstance(inputs, dict) else dict.fromkeys(card.inputs, inputs)
        if card.columns:  # which became numbers when they were read
            logits_KNC = members.told(inputs)
        else:
            logits_KNC = members.logits({name: each.numpy() for name, each in named.items()})
        return torch.einsum("k,knc->nc", weights_K, card.vote.ballots(logits_KNC))

    size = block_size(len(card.members), len(card.class_names))
    return torch.cat([*map(ask, pieces(examples, size))])


def _write_onnx(
    folder: Path, card: Card, state_K: Mapping[str, Tensor], probs_KNC: Tensor | None
) -> bool:
    """Write the programs, or nothing where they do not say what torch says about ``noise``."""
    import onnx

    from bend_ray.export.graphs import bag_program, forms
    from bend_ray.export.layers import member_graph

    try:
        member = member_graph(network_of(card), card)
        arrays = {name: tensor.numpy() for name, tensor in state_K.items()}
        large = sum(array.nbytes for array in arrays.values()) > INLINE_BYTES
        onnx.save_model(member, str(folder / MEMBER_ONNX))
        onnx.save_model(
            bag_program(card, member, arrays, card.rule.sums_exactly, forms(member)[0]),
            str(folder / ONNX),
            save_as_external_data=large,
            location=f"{ONNX}.data",
        )
        if off := _off(folder, card, probs_KNC):
            raise ValueError(off)
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


def _off(folder: Path, card: Card, probs_KNC: Tensor | None) -> str | None:
    """How a program differs from torch; None where it does not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / ONNX), options)
    if probs_KNC is None:
        return None
    (said_NKC,) = session.run(["member_probabilities"], noise(card))
    off = np.abs(said_NKC - probs_KNC.transpose(0, 1).numpy()).max()
    return None if off < TOLERANCE else f"expected probabilities as of torch, got {off:.1g} off"
