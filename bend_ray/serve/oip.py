"""The Open Inference Protocol v2, however it is carried: what is asked, answered and described.

Descriptions are JSON in Triton's words, which are also the names of gRPC's fields. Source:
https://github.com/kserve/open-inference-protocol, and Triton's extensions to it:
``binary_tensor_data``, ``classification``, ``model_configuration``, ``model_repository`` and
``statistics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray import __version__
from bend_ray.export.card import Card
from bend_ray.serve.answering import Answering
from bend_ray.serve.queries import Question, in_range, stop_of, whole, whole_numbers
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.voting import Answers, Stop

INPUT = "images"
PLATFORM = "bend_ray"
EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository"),
    "statistics",
)
DATATYPES = {
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Of images: their pixels must be whole numbers all the same."""

MEMBERS = "member_probabilities"
_ALWAYS = ("label", "probabilities", "votes", "entropy", "mutual_information", "members_used")
_BY_CLASS = ("probabilities", "votes")
_INT, _FLOAT = np.dtype(np.int64), np.dtype(np.float32)
_NAMES = {_FLOAT: "FP32", _INT: "INT64"}
# MLServer's clients say how a tensor is to be decoded.
_KNOWN = {
    "parameters": {"stop_when_decided", "confidence", "binary_data_output", "content_type"},
    "inputs[0].parameters": {"binary_data_size", "content_type"},
    "outputs": {"binary_data", "classification", "content_type"},
}


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for.

    Attributes:
        name: of it.
        binary: whether behind the JSON.
        classes: so many of the best, as texts; 0: numbers.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class Output:
    """An output, in the words of the protocol; ``values`` are texts where the datatype is BYTES."""

    name: str
    datatype: str
    shape: list[int]
    values: NDArray[Any]
    binary: bool

    def content(self) -> bytes:
        """Its values in binary."""
        if self.datatype != "BYTES":
            return np.ascontiguousarray(self.values).tobytes()
        texts = [text.encode() for text in self.values.flatten().tolist()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


@dataclass(frozen=True)
class Inferred:
    """An answer: the card of the bag that gave it, the request's id, and the outputs."""

    card: Card
    request_id: str | None
    outputs: list[Output]


class OpenInference:
    """The protocol over a bag.

    Args:
        service: that answers.
    """

    def __init__(self, service: Answering) -> None:
        self.service = service
        self.name = service.settings.name

    def known(self, name: str, version: str | None = None) -> Card:
        """The card of the live bag, if that is what is meant.

        Raises:
            Refusal: it is not.
        """
        card = self.service.card()
        if name != self.name:
            raise Refusal(404, f"expected the model {self.name}")
        if version not in (None, "", card.model_version):
            raise Refusal(404, f"expected version {card.model_version} of the model")
        return card

    def server(self) -> dict[str, Any]:
        """Metadata of the server."""
        return {"name": PLATFORM, "version": __version__, "extensions": list(EXTENSIONS)}

    def metadata(self, card: Card) -> dict[str, Any]:
        """What the model takes and gives, and how much at a time."""
        images = {"name": INPUT, "datatype": "UINT8", "shape": [-1, *card.image_shape]}
        return {
            "name": self.name,
            "versions": [card.model_version],
            "platform": PLATFORM,
            "inputs": [images],
            "outputs": [
                {"name": name, "datatype": _NAMES[dtype], "shape": [-1, *shape]}
                for name, (dtype, shape) in _outputs_of(card).items()
            ],
            "properties": {"max_batch_size": str(self.service.settings.max_batch_size)},
        }

    def config(self, card: Card) -> dict[str, Any]:
        """The same in the words of Triton's model configuration, without the batch's dimension."""
        outputs = []
        for name, (dtype, shape) in _outputs_of(card).items():
            output: dict[str, Any] = {"name": name, "data_type": f"TYPE_{_NAMES[dtype]}"}
            flat = {"dims": [1], "reshape": {"shape": []}}
            outputs.append(output | ({"dims": shape} if shape else flat))
        images = {"name": INPUT, "data_type": "TYPE_UINT8", "dims": list(card.image_shape)}
        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": self.service.settings.max_batch_size,
            "input": [images],
            "output": outputs,
        }

    def index(self) -> list[dict[str, str]]:
        """The one model that there is."""
        version = self.service.card().model_version
        return [{"name": self.name, "version": version, "state": "READY", "reason": ""}]

    def statistics(self, card: Card) -> dict[str, Any]:
        """What the replica that is asked has done; for all of them there are the metrics."""
        seen = self.service.statistics

        def of(ns: int) -> dict[str, int]:
            return {"count": seen.requests, "ns": ns}

        durations = {
            "success": of(seen.queue_ns + seen.compute_ns),
            "queue": of(seen.queue_ns),
            "compute_infer": of(seen.compute_ns),
        }
        others = ("fail", "compute_input", "compute_output")
        one = {
            "name": self.name,
            "version": card.model_version,
            "last_inference": seen.last_ms,
            "inference_count": seen.inferences,
            "execution_count": seen.executions,
            "inference_stats": durations | {key: {"count": 0, "ns": 0} for key in others},
            "batch_stats": [],
        }
        return {"model_stats": [one]}

    async def infer(self, card: Card, body: Mapping[str, Any], tail: bytes) -> Inferred:
        """Answer an inference request.

        Args:
            card: of the bag.
            body: the request as the JSON of the protocol.
            tail: tensors in binary.

        Raises:
            Refusal: what is wrong with it.
        """
        settings = self.service.settings
        request_id = body.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise Refusal(400, "id: expected a string")
        parameters = _mapping(body, "parameters", "parameters")
        wanted = _wanted(body, parameters, len(card.class_names))
        pixels_BCHW = _images(body, tail, card, settings.max_batch_size)
        decided, confidence = parameters.get("stop_when_decided"), parameters.get("confidence")
        stop = stop_of(decided, confidence, settings.stop)
        keep = any(each.name == MEMBERS for each in wanted)
        # Every member is wanted, so every member is asked.
        question = Question(pixels_BCHW, Stop() if keep else stop, keep)
        answers = await self.service.ask(card, question)
        arrays = _arrays(answers)
        outputs = [_output(each, arrays[each.name], card.class_names) for each in wanted]
        return Inferred(card, request_id, outputs)


def _outputs_of(card: Card) -> dict[str, tuple[np.dtype[Any], list[int]]]:
    """Type and shape of every output about one image."""
    classes, members = len(card.class_names), len(card.members)
    return {
        "label": (_INT, []),
        "probabilities": (_FLOAT, [classes]),
        "votes": (_INT, [classes]),
        "entropy": (_FLOAT, []),
        "mutual_information": (_FLOAT, []),
        "members_used": (_INT, []),
        MEMBERS: (_FLOAT, [members, classes]),
    }


def _mapping(holder: Mapping[str, Any], key: str, where: str, of: str = "") -> Mapping[str, Any]:
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{where}: expected an object")
    known = _KNOWN[of or where]
    if unknown := sorted(set(value) - known):
        raise Refusal(400, f"{where}.{unknown[0][:64]}: expected one of {', '.join(sorted(known))}")
    return value


def _wanted(
    body: Mapping[str, Any], parameters: Mapping[str, Any], classes: int
) -> tuple[Wanted, ...]:
    all_binary = parameters.get("binary_data_output") is True
    outputs = body.get("outputs")
    if outputs is None or outputs == []:
        return tuple(Wanted(name, all_binary) for name in _ALWAYS)
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise Refusal(400, "outputs: expected a list of objects")
    found = {}
    for index, output in enumerate(outputs):
        name, where = output.get("name"), f"outputs[{index}]"
        if name not in (*_ALWAYS, MEMBERS):
            known = ", ".join((*_ALWAYS, MEMBERS))
            raise Refusal(400, f"{where}.name: expected one of {known}")
        own = _mapping(output, "parameters", f"{where}.parameters", "outputs")
        best = own.get("classification", 0)
        if type(best) is not int or not best >= 0 or (best and name not in _BY_CLASS):
            raise Refusal(
                400,
                f"{where}.parameters.classification: expected a number of classes, for one of "
                f"{', '.join(_BY_CLASS)}",
            )
        binary = own.get("binary_data", all_binary) is True
        found[name] = Wanted(name, binary, min(best, classes))
    return tuple(found.values())


def _images(body: Mapping[str, Any], tail: bytes, card: Card, max_images: int) -> NDArray[np.uint8]:
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(400, f"inputs: expected a list of one tensor, {INPUT}")
    tensor = inputs[0]
    expected = f"{INPUT}, UINT8, shape [n, {', '.join(map(str, card.image_shape))}]"
    datatype = tensor.get("datatype")
    is_known = isinstance(datatype, str) and datatype in DATATYPES
    if tensor.get("name") != INPUT or not is_known:
        came = f"{str(tensor.get('name'))[:64]}, {str(datatype)[:16]}"
        raise Refusal(400, f"inputs[0]: expected {expected}; got {came}")
    shape = tensor.get("shape")
    if not _is_shape(shape) or tuple(shape[1:]) != card.image_shape:  # type: ignore[index]
        raise Refusal(400, f"inputs[0].shape: expected {expected}")
    assert isinstance(shape, list)
    if not 1 <= shape[0] <= max_images:
        raise Refusal(400, f"inputs[0].shape: expected 1 to {max_images} images, got {shape[0]}")
    return _values(tensor, tail, tuple(shape), card)


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 4
        and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    )


def _values(
    tensor: Mapping[str, Any], tail: bytes, shape: tuple[int, ...], card: Card
) -> NDArray[np.uint8]:
    count, dtype = int(np.prod(shape, dtype=np.int64)), DATATYPES[tensor["datatype"]]
    size = _mapping(tensor, "parameters", "inputs[0].parameters").get("binary_data_size")
    if size is not None:
        expected = count * dtype.itemsize
        if type(size) is not int or {size, len(tail)} != {expected} or "data" in tensor:
            raise Refusal(
                400,
                f"inputs[0]: expected binary_data_size and as many bytes behind the JSON to be "
                f"{expected}, got {len(tail)} bytes",
            )
        array, where = whole(np.frombuffer(tail, dtype), "inputs[0]"), "inputs[0]"
        return in_range(array.reshape(shape), where, card)
    if tail:
        raise Refusal(400, f"expected no bytes behind the JSON, got {len(tail)}")
    array = whole_numbers(tensor.get("data"), "inputs[0].data")
    if array.size != count or (array.ndim != 1 and array.shape != shape):
        raise Refusal(
            400, f"inputs[0].data: expected {count} numbers, flat or in shape {list(shape)}"
        )
    return in_range(array.reshape(shape), "inputs[0].data", card)


def _arrays(answers: Answers) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "label": answers.labels_B.astype(_INT),
        "probabilities": answers.probs_BC.astype(_FLOAT),
        "votes": answers.votes_BC.astype(_INT),
        "entropy": answers.entropy_B.astype(_FLOAT),
        "mutual_information": answers.information_B.astype(_FLOAT),
        "members_used": answers.used_B.astype(_INT),
    }
    if answers.member_probs_BEC is not None:
        arrays[MEMBERS] = answers.member_probs_BEC
    return arrays


def _output(wanted: Wanted, array: NDArray[Any], class_names: tuple[str, ...]) -> Output:
    datatype, values = _NAMES[array.dtype], array
    if wanted.classes:
        best_BK = np.argsort(-array, axis=1, kind="stable")[:, : wanted.classes]
        rows = [
            [f"{row[c]:f}:{c}:{class_names[c]}" for c in best]
            for row, best in zip(array.tolist(), best_BK.tolist(), strict=True)
        ]
        datatype, values = "BYTES", np.array(rows, dtype=object)
    return Output(wanted.name, datatype, list(values.shape), values, wanted.binary)
