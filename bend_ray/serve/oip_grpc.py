"""The Open Inference Protocol v2 over gRPC, through Ray Serve's proxies or by ourselves.

The messages are those of ``open_inference.proto``, in a pool of their own: a client in the same
process has registered Triton's by the same names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from bend_ray.errors import BendError
from bend_ray.export.card import Card
from bend_ray.serve.answering import Answering
from bend_ray.serve.guard import bears
from bend_ray.serve.oip import Answered, OpenInference
from bend_ray.serve.queries import Refusal, check_size

SERVICE = "inference.GRPCInferenceService"
_OPEN = ("ServerLive", "ServerReady")
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_FIELDS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"}
_FIELDS |= {"INT64": "int64_contents", "BOOL": "bool_contents"}


_FILES = descriptor_pb2.FileDescriptorSet.FromString(
    (files("bend_ray.serve") / "open_inference.binpb").read_bytes()
)
MESSAGES = {
    name.removeprefix("inference."): message
    for name, message in message_factory.GetMessages(_FILES.file, DescriptorPool()).items()
}


def _known(describe: Callable[[OpenInference, Card], Any]) -> Callable[..., Any]:
    return lambda protocol, asked: describe(protocol, protocol.known(asked.name, asked.version))


METHODS: dict[str, Callable[[OpenInference, Any], Any]] = {
    "ServerLive": lambda protocol, asked: {"live": True},
    "ServerReady": lambda protocol, asked: {"ready": protocol.service.bag is not None},
    "ModelReady": _known(lambda protocol, card: {"ready": True}),
    "ServerMetadata": lambda protocol, asked: protocol.server(),
    "ModelMetadata": _known(OpenInference.metadata),
    "ModelConfig": _known(lambda protocol, card: {"config": protocol.config(card)}),
    "ModelStatistics": _known(OpenInference.statistics),
    "RepositoryIndex": lambda protocol, asked: {"models": protocol.index()},
    "ModelInfer": lambda protocol, asked: None,  # waits for others: see ``GrpcInference``
}
"""Method to what it answers, as JSON."""


class GrpcInference:
    """Answers calls; also gRPC's servicer where the server is ours."""

    def __init__(self, service: Answering, token: str | None) -> None:
        self._protocol, self._token = OpenInference(service), token

    async def call(self, method: str, content: bytes, context: Any) -> Any:
        """The answer to a call; an empty one, and a code in the context, where it is refused."""
        started, status = time.perf_counter(), 499
        try:
            metadata = dict(context.invocation_metadata() or ())
            if method not in _OPEN and not bears(self._token, metadata.get("authorization", "")):
                raise Refusal(401, "expected the metadata authorization: Bearer TOKEN")
            answer, status = await self._answer(method, content), 200
        except BendError as error:
            refusal = Refusal.of(error)
            status = refusal.status
            context.set_code(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT))
            context.set_details(refusal.message)
            answer = MESSAGES[f"{method}Response"]()
        finally:
            seconds = time.perf_counter() - started
            self._protocol.service.meters.request(f"/{SERVICE}/{method}", status, seconds)
        return answer

    async def _answer(self, method: str, content: bytes) -> Any:
        service = self._protocol.service
        if service.bag is not None:
            check_size(content, service.bag.card, service.settings.max_batch_size)
        try:
            asked = MESSAGES[f"{method}Request"].FromString(content)
        except DecodeError:
            raise Refusal(400, f"expected a message inference.{method}Request") from None
        if method != "ModelInfer":
            said = METHODS[method](self._protocol, asked)
            message = MESSAGES[f"{method}Response"]()
            return json_format.ParseDict(said, message, ignore_unknown_fields=True)
        card = self._protocol.known(asked.model_name, asked.model_version)
        tail = b"".join(asked.raw_input_contents)
        _, outputs = await self._protocol.infer(card, _body(asked), tail)
        own = {"model_name": asked.model_name, "model_version": card.model_version, "id": asked.id}
        return _written(own, outputs, raw=bool(asked.raw_input_contents))


def _body(asked: Any) -> dict[str, Any]:
    """A request as the JSON that it would be over HTTP."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _parameters(tensor),
            "data": [value for _, values in tensor.contents.ListFields() for value in values]
            or None,
        }
        for tensor in asked.inputs
    ]
    for each, content in zip(inputs, asked.raw_input_contents, strict=False):
        each["parameters"]["binary_data_size"] = len(content)
    outputs = [{"name": each.name, "parameters": _parameters(each)} for each in asked.outputs]
    return {"parameters": _parameters(asked), "inputs": inputs, "outputs": outputs}


def _parameters(holder: Any) -> dict[str, Any]:
    kinds = {name: each.WhichOneof("parameter_choice") for name, each in holder.parameters.items()}
    return {name: kind and getattr(holder.parameters[name], kind) for name, kind in kinds.items()}


def _written(own: Mapping[str, str], outputs: list[Answered], raw: bool) -> Any:
    """A response, its tensors in the form in which the request's came."""
    said = MESSAGES["ModelInferResponse"](**own)
    for each in outputs:
        shape = each.values.shape
        output = said.outputs.add(name=each.name, datatype=each.datatype, shape=shape)
        values = each.values.flatten().tolist()
        if raw:
            said.raw_output_contents.append(each.content())
        elif each.datatype == "BYTES":
            output.contents.bytes_contents.extend(text.encode() for text in values)
        else:
            getattr(output.contents, _FIELDS[each.datatype]).extend(values)
    return said


def add_to_server(servicer: Any, server: Any) -> None:
    """Register a ``GrpcInference``; Ray's proxies, whose replicas answer, give one of their own."""

    def handler(method: str) -> Any:
        async def call(content: bytes, context: Any) -> Any:
            return await servicer.call(method, content, context)

        # Requests stay bytes: what they are, the replica knows.
        return grpc.unary_unary_rpc_method_handler(
            call, response_serializer=lambda answer: answer.SerializeToString()
        )

    handlers = {method: handler(method) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
