"""The Open Inference Protocol v2 over HTTP: JSON, and tensors in binary behind it.

Source: https://github.com/kserve/open-inference-protocol, and for the binary form the extension
that Triton describes in ``protocol/extension_binary_data.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.export.card import Card
from bend_ray.serve.queries import Question, in_range, parse_object, stop_of, whole_numbers
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.voting import Answers, Stop

INPUT = "images"
HEADER_LENGTH = "Inference-Header-Content-Length"
PLATFORM = "bend_ray"
EXTENSIONS = ["binary_tensor_data"]

_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}
_ALWAYS = ("label", "probabilities", "votes", "entropy", "mutual_information", "members_used")
MEMBERS = "member_probabilities"


@dataclass(frozen=True)
class InferRequest:
    """A request, parsed.

    Attributes:
        id: given back in the response; None where there is none.
        question: what is asked.
        outputs: name -> whether it is wanted in binary.
    """

    id: str | None
    question: Question
    outputs: Mapping[str, bool]


def outputs_of(card: Card) -> list[dict[str, Any]]:
    """Name, datatype and shape of every output."""
    classes, members = len(card.class_names), len(card.members)
    shapes: dict[str, tuple[str, list[int]]] = {
        "label": ("INT64", [-1]),
        "probabilities": ("FP32", [-1, classes]),
        "votes": ("INT64", [-1, classes]),
        "entropy": ("FP32", [-1]),
        "mutual_information": ("FP32", [-1]),
        "members_used": ("INT64", [-1]),
        MEMBERS: ("FP32", [-1, members, classes]),
    }
    return [{"name": n, "datatype": d, "shape": s} for n, (d, s) in shapes.items()]


def model_metadata(name: str, card: Card) -> dict[str, Any]:
    """What the model takes and gives."""
    images = {"name": INPUT, "datatype": "UINT8", "shape": [-1, *card.image_shape]}
    return {
        "name": name,
        "versions": [card.model_version],
        "platform": PLATFORM,
        "inputs": [images],
        "outputs": outputs_of(card),
    }


def parse_request(
    content: bytes, header_length: str | None, card: Card, default: Stop, max_images: int
) -> InferRequest:
    """A request's body.

    Args:
        content: the body.
        header_length: of the JSON at its beginning; None where it is JSON alone.
        card: of the bag.
        default: when the deployment's votes stop.
        max_images: the most of one request.

    Raises:
        Refusal: what is wrong with it.
    """
    head, tail = _split(content, header_length)
    body = parse_object(head)
    request_id = body.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise Refusal(400, "id: expected a string")
    parameters = _mapping(body, "parameters", "parameters")
    outputs = _outputs(body, parameters)
    pixels_BCHW = _images(body, tail, card, max_images)
    stop = stop_of(parameters.get("stop_when_decided"), parameters.get("confidence"), default)
    if MEMBERS in outputs:
        stop = Stop()  # every member is wanted, so every member is asked
    return InferRequest(request_id, Question(pixels_BCHW, stop, MEMBERS in outputs), outputs)


def _split(content: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return content, b""
    valid = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
    if not valid or int(header_length) > len(content):
        raise Refusal(
            400,
            f"{HEADER_LENGTH}: expected a number of bytes, at most the {len(content)} of the body, "
            f"got {header_length[:20]!r}",
        )
    return content[: int(header_length)], content[int(header_length) :]


def _mapping(holder: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{where}: expected an object")
    return value


def _outputs(body: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, bool]:
    all_binary = parameters.get("binary_data_output") is True
    wanted = body.get("outputs")
    if wanted is None or wanted == []:
        return dict.fromkeys(_ALWAYS, all_binary)
    if not isinstance(wanted, list) or not all(isinstance(each, dict) for each in wanted):
        raise Refusal(400, "outputs: expected a list of objects")
    found = {}
    for index, output in enumerate(wanted):
        name = output.get("name")
        if name not in (*_ALWAYS, MEMBERS):
            known = ", ".join((*_ALWAYS, MEMBERS))
            raise Refusal(400, f"outputs[{index}].name: expected one of {known}")
        own = _mapping(output, "parameters", f"outputs[{index}].parameters")
        found[name] = own.get("binary_data", all_binary) is True
    return found


def _images(body: Mapping[str, Any], tail: bytes, card: Card, max_images: int) -> NDArray[np.uint8]:
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(400, f"inputs: expected a list of one tensor, {INPUT}")
    tensor = inputs[0]
    expected = f"{INPUT}, UINT8, shape [n, {', '.join(map(str, card.image_shape))}]"
    if tensor.get("name") != INPUT or tensor.get("datatype") != "UINT8":
        came = f"{str(tensor.get('name'))[:64]}, {str(tensor.get('datatype'))[:16]}"
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
    count = int(np.prod(shape, dtype=np.int64))
    size = _mapping(tensor, "parameters", "inputs[0].parameters").get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count or len(tail) != count or "data" in tensor:
            raise Refusal(
                400,
                f"inputs[0]: expected binary_data_size and as many bytes behind the JSON to be "
                f"{count}, got {len(tail)} bytes",
            )
        return in_range(np.frombuffer(tail, np.uint8).reshape(shape), "inputs[0]", card)
    if tail:
        raise Refusal(400, f"expected no bytes behind the JSON, got {len(tail)}")
    array = whole_numbers(tensor.get("data"), "inputs[0].data")
    if array.size != count or (array.ndim != 1 and array.shape != shape):
        raise Refusal(
            400, f"inputs[0].data: expected {count} numbers, flat or in shape {list(shape)}"
        )
    return in_range(array.reshape(shape), "inputs[0].data", card)


def _arrays(answers: Answers) -> dict[str, NDArray[Any]]:
    return {
        "label": answers.labels_B.astype(np.int64),
        "probabilities": answers.probs_BC.astype(np.float32),
        "votes": answers.votes_BC.astype(np.int64),
        "entropy": answers.entropy_B.astype(np.float32),
        "mutual_information": answers.information_B.astype(np.float32),
        "members_used": answers.used_B.astype(np.int64),
    }


def write_response(
    name: str, card: Card, request: InferRequest, answers: Answers
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a response.

    Args:
        name: of the model.
        card: of the bag that answered.
        request: that is answered.
        answers: to it.
    """
    arrays = _arrays(answers)
    if answers.member_probs_BEC is not None:
        arrays[MEMBERS] = answers.member_probs_BEC
    written, tail = [], []
    for wanted, binary in request.outputs.items():
        array = np.ascontiguousarray(arrays[wanted])
        output: dict[str, Any] = {
            "name": wanted,
            "datatype": _DATATYPES[array.dtype],
            "shape": list(array.shape),
        }
        if binary:
            output["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            output["data"] = array.flatten().tolist()
        written.append(output)
    body: dict[str, Any] = {"model_name": name, "model_version": card.model_version}
    if request.id is not None:
        body["id"] = request.id
    head = json.dumps(body | {"outputs": written}).encode()
    if not tail:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return head + b"".join(tail), headers
