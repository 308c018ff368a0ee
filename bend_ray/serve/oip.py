"""The Open Inference Protocol v2, however it is carried: what is asked, answered and described.

Descriptions are JSON in Triton's words, which are also the names of gRPC's fields. Source:
https://github.com/kserve/open-inference-protocol, and Triton's extensions to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from bend_ray.errors import DataError
from bend_ray.export import card as cards
from bend_ray.export.card import Card
from bend_ray.export.graphs import members_outputs
from bend_ray.serve import queries
from bend_ray.serve.answering import Answering
from bend_ray.serve.queries import Answers, Inputs, Refusal
from bend_ray.spec import Spec
from bend_ray.version import __version__

_BITS = {"UINT": (8, 16, 32, 64), "INT": (8, 16, 32, 64), "FP": (16, 32, 64)}
_NUMBERS = {
    f"{kind}{size}": np.dtype(f"<{kind[0].lower()}{size // 8}")
    for kind, sizes in _BITS.items()
    for size in sizes
}
"""Types of inputs; where the network takes whole numbers, they must be whole in any of these."""
_DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "float64": "FP64"}
_DATATYPES |= {"string": "BYTES", "object": "BYTES", "bool": "BOOL"}


class _Coded(Spec, strict=True):
    content_type: str | None = None  # MLServer's clients say how a tensor is to be decoded


class InputParameters(_Coded):
    """Of an input."""

    binary_data_size: NonNegativeInt | None = None


class Input(Spec, strict=True):
    """A tensor."""

    name: str
    datatype: str
    shape: list[NonNegativeInt]
    parameters: InputParameters | None = None
    data: Any = None


class OutputParameters(_Coded):
    """Of an output: in binary or not, and of how many of the best classes, where not of all."""

    binary_data: bool | None = None
    classification: NonNegativeInt = 0


class Output(Spec, strict=True):
    """An output that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class Parameters(_Coded, queries.Wants):
    """Of a request."""

    binary_data_output: bool = False


class Request(Spec, strict=True):
    """A request."""

    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[Output] | None = None


@dataclass(frozen=True)
class Answered:
    """An output, answered; ``values`` are texts where the datatype is BYTES."""

    name: str
    datatype: str
    values: NDArray[Any]
    binary: bool

    def content(self) -> bytes:
        """Its values in binary."""
        if self.datatype != "BYTES":
            return self.values.tobytes()
        texts = [text.encode() for text in self.values.flatten().tolist()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


class OpenInference:
    """The protocol over a bag."""

    def __init__(self, service: Answering) -> None:
        self.service, self.name = service, service.settings.name

    def known(self, name: str, version: str | None = None) -> Card:
        """The card of the live bag, if that is what is meant."""
        card = self.service.card()
        if name != self.name:
            raise Refusal(404, f"expected the model {self.name}")
        if version not in (None, "", card.model_version):
            raise Refusal(404, f"expected version {card.model_version} of the model")
        return card

    def server(self) -> dict[str, Any]:
        """Metadata of the server."""
        own = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
        return {"name": "bend_ray", "version": __version__, "extensions": [*own, "statistics"]}

    def metadata(self, card: Card) -> dict[str, Any]:
        """What the model takes and gives, and how much at a time."""
        return {
            "name": self.name,
            "versions": [card.model_version],
            "platform": "bend_ray",
            "inputs": [
                {"name": name, "datatype": _DATATYPES[own.dtype], "shape": [-1, *own.shape]}
                for name, own in card.inputs.items()
            ],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": [-1, *shape]}
                for name, (datatype, shape) in _outputs_of(card).items()
            ],
            "properties": {"max_batch_size": str(self.service.settings.max_batch_size)},
        }

    def config(self, card: Card) -> dict[str, Any]:
        """The same in the words of Triton's model configuration, without the batch's dimension."""

        def typed(tensor: dict[str, Any]) -> dict[str, Any]:
            dims = tensor["shape"][1:]
            sizes = {"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}}
            kind = tensor["datatype"].replace("BYTES", "STRING")
            return {"name": tensor["name"], "data_type": f"TYPE_{kind}", **sizes}

        told = self.metadata(card)
        return {
            "name": self.name,
            "platform": "bend_ray",
            "backend": "bend_ray",
            "max_batch_size": self.service.settings.max_batch_size,
            "input": [typed(tensor) for tensor in told["inputs"]],
            "output": [typed(tensor) for tensor in told["outputs"]],
        }

    def index(self) -> list[dict[str, str]]:
        """The one model that there is."""
        version = self.service.card().model_version
        return [{"name": self.name, "version": version, "state": "READY", "reason": ""}]

    def statistics(self, card: Card) -> dict[str, Any]:
        """What the replica that is asked has done; for all of them there are the metrics."""
        seen = self.service.statistics
        waited, computed = int(1e9 * seen.queue_seconds), int(1e9 * seen.compute_seconds)
        spent = {"success": waited + computed, "queue": waited, "compute_infer": computed}
        spent |= dict.fromkeys(("fail", "compute_input", "compute_output"), 0)
        one = {
            "name": self.name,
            "version": card.model_version,
            "last_inference": int(1000 * seen.last),
            "inference_count": seen.examples,
            "execution_count": seen.batches,
            "inference_stats": {
                name: {"count": seen.questions if ns else 0, "ns": ns} for name, ns in spent.items()
            },
            "batch_stats": [],
        }
        return {"model_stats": [one]}

    async def infer(
        self, card: Card, body: Mapping[str, Any], tail: bytes
    ) -> tuple[Request, list[Answered]]:
        """Answer an inference request: JSON, and tensors in binary behind it."""
        request = queries.given(Request, body)
        parameters = request.parameters or Parameters()
        inputs = _inputs(request.inputs, tail, card, self.service.settings.max_batch_size)
        wanted = {each.name: each for each in request.outputs or ()}
        members, usual = members_outputs(card), _outputs_of(card)
        # Where every member is wanted, every member is asked.
        everyone = not wanted.keys().isdisjoint(members)
        card, said = await self.service.ask(card, inputs, parameters, everyone)
        wanted = wanted or {n: Output(name=n) for n in usual if n not in members}
        wanted |= {n: Output(name=n) for n in said if n not in usual and n not in wanted}
        if strange := [name for name in wanted if name not in said]:
            raise DataError(f"outputs: expected of {', '.join(said)}, got {strange[0][:64]}")
        return request, [_answered(each, said, card, parameters) for each in wanted.values()]


def _outputs_of(card: Card) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Datatype and shape of every output about one example, that needs no parameter."""
    told: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("INT64" if dtype == "int64" else card.task.sent, shape)
        for name, (dtype, shape) in card.outputs.items()
    }
    return told | {"members_used": ("INT64", ())}


def _inputs(tensors: list[Input], tail: bytes, card: Card, most: int) -> Inputs:
    """What is asked about: tensors in JSON, and others behind it in their order."""
    names = sorted(tensor.name for tensor in tensors)
    if names != sorted(card.inputs):
        expected, got = ", ".join(card.inputs), ", ".join(names)[:64]
        raise DataError(f"inputs: expected {expected}, got {got}")
    found, start = {}, 0
    for tensor in tensors:
        size = (tensor.parameters and tensor.parameters.binary_data_size) or 0
        own = card.inputs[tensor.name]
        found[tensor.name] = _values(tensor, tail[start : start + size], own, most)
        start += size
    if start != len(tail):
        raise DataError(f"expected {start} bytes behind the JSON, got {len(tail)}")
    return queries.together(found)


def _values(tensor: Input, content: bytes, own: cards.Input, most: int) -> NDArray[Any]:
    where, shape = tensor.name, tuple(tensor.shape)
    if shape[1:] != own.shape or not shape or not 1 <= shape[0] <= most:
        sizes = "".join(f", {size}" for size in own.shape)
        raise DataError(
            f"{where}.shape: expected examples, shape [n{sizes}] with 1 to {most} of them, got "
            f"{list(shape)[:8]}"
        )
    count, kind = shape[0] * own.numbers, tensor.datatype
    size = tensor.parameters and tensor.parameters.binary_data_size
    if (kind == "BYTES") != (own.dtype == "string"):
        raise DataError(f"{where}.datatype: expected {_DATATYPES[own.dtype]}, got {kind[:64]}")
    if kind == "BYTES" or (own.column and size is None):
        texts = tensor.data if size is None else _texts(content, where)
        if not isinstance(texts, list) or len(texts) != count:
            raise DataError(f"{where}.data: expected {count} values in a list")
        return queries.given_column(texts, where, own, seconds=True)
    if (dtype := _NUMBERS.get(kind)) is None:
        raise DataError(f"{where}.datatype: expected {', '.join(_NUMBERS)}, got {kind[:64]}")
    if size is not None:
        expected = count * dtype.itemsize
        if {size, len(content)} != {expected} or tensor.data is not None:
            raise DataError(
                f"{where}: expected binary_data_size and as many bytes behind the JSON to be "
                f"{expected}, got {size} and {len(content)}"
            )
        values = np.frombuffer(content, dtype).reshape(shape)
        if own.column:
            return queries.given_column(values, where, own, seconds=True)
        return queries.fitted(values, where, own)
    array = queries.numbers(tensor.data, f"{where}.data")
    if array.size != count or (array.ndim != 1 and array.shape != shape):
        raise DataError(f"{where}.data: expected {count} numbers, flat or as {list(shape)}")
    return queries.fitted(array.reshape(shape), f"{where}.data", own)


def _texts(content: bytes, where: str) -> list[bytes]:
    """Texts in binary, each behind its length."""
    found = []
    while content:
        size = int.from_bytes(content[:4], "little")
        if len(content) < 4 + size:
            raise DataError(f"{where}: expected texts behind their lengths, got fewer bytes")
        found.append(content[4 : 4 + size])
        content = content[4 + size :]
    return found


def _answered(wanted: Output, said: Answers, card: Card, parameters: Parameters) -> Answered:
    how, name = wanted.parameters or OutputParameters(), wanted.name
    binary = parameters.binary_data_output if how.binary_data is None else how.binary_data
    if how.classification and name not in card.task.ranked:
        raise DataError(f"classification: expected of {' or '.join(card.task.ranked)} alone")
    if not how.classification:
        values = np.ascontiguousarray(said[name])
        if values.dtype.kind == "f":
            values = values.astype({"FP32": np.float32, "FP64": np.float64}[card.task.sent])
        return Answered(name, _DATATYPES[values.dtype.name], values, binary)
    best_BK = np.argsort(-said[name], axis=1, kind="stable")[:, : how.classification]
    rows = [
        [f"{row[c]:f}:{c}:{card.class_names[c]}" for c in best]
        for row, best in zip(said[name].tolist(), best_BK.tolist(), strict=True)
    ]
    return Answered(name, "BYTES", np.array(rows, dtype=object), binary)
