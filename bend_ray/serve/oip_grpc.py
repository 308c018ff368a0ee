"""The Open Inference Protocol v2 over gRPC, through Ray Serve's proxies or by ourselves.

The messages are those of ``open_inference.proto``, in a pool of their own: a client in the same
process has registered Triton's by the same names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from bend_ray.export.card import Card
from bend_ray.serve.answering import Answering
from bend_ray.serve.guard import bears
from bend_ray.serve.meters import Request
from bend_ray.serve.oip import Inferred, OpenInference
from bend_ray.serve.queries import check_size
from bend_ray.serve.refusals import Refusal

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
_OPEN = ("ServerLive", "ServerReady")
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


def _messages() -> dict[str, Any]:
    content = (files("bend_ray.serve") / "open_inference.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(content).file
    pool.Add(file)
    names = [message.name for message in file.message_type]
    found = {name: pool.FindMessageTypeByName(f"inference.{name}") for name in names}
    return {name: message_factory.GetMessageClass(each) for name, each in found.items()}


MESSAGES = _messages()


def _known(describe: Callable[[OpenInference, Card], Any]) -> Callable[..., Any]:
    return lambda protocol, asked: describe(protocol, protocol.known(asked.name, asked.version))


def _ready(protocol: OpenInference, asked: Any) -> dict[str, bool]:
    return {"ready": protocol.service.bag is not None}


METHODS: dict[str, Callable[[OpenInference, Any], Any]] = {
    "ServerLive": lambda protocol, asked: {"live": True},
    "ServerReady": _ready,
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
    """What answers calls, whoever brings them.

    Args:
        service: that answers.
        token: that callers must bear; None: everybody is welcome.
    """

    def __init__(self, service: Answering, token: str | None) -> None:
        self._protocol, self._token = OpenInference(service), token

    async def call(self, method: str, content: bytes, metadata: Mapping[str, Any]) -> Message:
        """Answer a call.

        Args:
            method: one of ``METHODS``.
            content: the request, encoded.
            metadata: of the call.

        Raises:
            Refusal: what is wrong with it.
        """
        started, status = time.perf_counter(), 200
        try:
            if method not in _OPEN and not bears(self._token, metadata.get("authorization", "")):
                raise Refusal(401, "expected the metadata authorization: Bearer TOKEN")
            return await self._answer(method, content)
        except Refusal as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception:
            logger.exception("a bug of ours")
            status = 500
            raise Refusal(500, "this is a bug of the server, not of the request") from None
        finally:
            seconds = time.perf_counter() - started
            request = Request("gRPC", f"/{SERVICE}/{method}", status, seconds)
            self._protocol.service.meters.request(request)

    async def _answer(self, method: str, content: bytes) -> Message:
        service = self._protocol.service
        if service.bag is not None:
            check_size(content, service.bag.card, service.settings.max_batch_size)
        try:
            asked = MESSAGES[f"{method}Request"].FromString(content)
        except DecodeError:
            raise Refusal(400, f"expected a message inference.{method}Request") from None
        if method == "ModelInfer":
            card = self._protocol.known(asked.model_name, asked.model_version)
            raw = bool(asked.raw_input_contents)
            inferred = await self._protocol.infer(card, _body(asked), _tail(asked))
            return _written(asked.model_name, inferred, raw)
        said = METHODS[method](self._protocol, asked)
        answer: Message = json_format.ParseDict(
            said, MESSAGES[f"{method}Response"](), ignore_unknown_fields=True
        )
        return answer


def _body(asked: Any) -> dict[str, Any]:
    """A request as the JSON that it would be over HTTP."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _parameters(tensor),
            **_contents(tensor),
        }
        for tensor in asked.inputs
    ]
    if asked.raw_input_contents and len(inputs) == 1:
        sizes = [len(content) for content in asked.raw_input_contents]
        inputs[0]["parameters"] |= {"binary_data_size": sum(sizes)}
    outputs = [{"name": each.name, "parameters": _parameters(each)} for each in asked.outputs]
    said = {"parameters": _parameters(asked), "inputs": inputs, "outputs": outputs}
    return said | ({"id": asked.id} if asked.id else {})


def _tail(asked: Any) -> bytes:
    return b"".join(asked.raw_input_contents)


def _parameters(holder: Any) -> dict[str, Any]:
    given = {name: each.WhichOneof("parameter_choice") for name, each in holder.parameters.items()}
    return {
        name: getattr(holder.parameters[name], kind) if kind else None
        for name, kind in given.items()
    }


def _contents(tensor: Any) -> dict[str, Any]:
    fields = [list(values) for _, values in tensor.contents.ListFields()]
    if len(fields) > 1:
        raise Refusal(400, f"{tensor.name[:64]}: expected contents of one type, got several")
    return {"data": fields[0]} if fields else {}


def _written(name: str, inferred: Inferred, raw: bool) -> Message:
    """A response, its tensors in the form in which the request's came."""
    answer: Message = MESSAGES["ModelInferResponse"](
        model_name=name, model_version=inferred.card.model_version, id=inferred.request_id or ""
    )
    said: Any = answer
    for each in inferred.outputs:
        output = said.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        values = each.values.flatten().tolist()
        if raw:
            said.raw_output_contents.append(each.content())
        elif each.datatype == "BYTES":
            output.contents.bytes_contents.extend(text.encode() for text in values)
        elif each.datatype == "FP32":
            output.contents.fp32_contents.extend(values)
        else:
            output.contents.int64_contents.extend(values)
    return answer


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the methods; on a proxy of Ray's, which has calls answered by its replicas.

    Args:
        servicer: has a method ``call(name, content, context)``; of no use to Ray's.
        server: gRPC's.
    """

    def handler(method: str) -> Any:
        async def call(content: bytes, context: Any) -> bytes:
            answer: bytes = await servicer.call(method, content, context)
            return answer

        return grpc.unary_unary_rpc_method_handler(call)  # bytes: nobody else need know the types

    handlers = {method: handler(method) for method in METHODS}
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
    server.add_generic_rpc_handlers((generic,))


class Servicer:
    """Answers calls of a server of our own.

    Args:
        inference: that answers.
    """

    def __init__(self, inference: GrpcInference) -> None:
        self._inference = inference

    async def call(self, method: str, content: bytes, context: Any) -> bytes:
        """Answer a call, or end it with what is wrong."""
        metadata = dict(context.invocation_metadata() or ())
        try:
            answer = await self._inference.call(method, content, metadata)
            return bytes(answer.SerializeToString())
        except Refusal as refusal:
            await context.abort(code_of(refusal), refusal.message)
            raise


def code_of(refusal: Refusal) -> grpc.StatusCode:
    """What gRPC calls a refusal's status."""
    return _CODES.get(refusal.status, grpc.StatusCode.INVALID_ARGUMENT)


class GrpcMethods:
    """A replica's methods, by the names that Ray Serve's gRPC proxy calls."""

    def serve_grpc(self, service: Answering, token: str | None) -> None:
        """Answer calls from now on."""
        self._inference = GrpcInference(service, token)

    async def _called(self, method: str, content: bytes, grpc_context: Any) -> Message:
        metadata = dict(grpc_context.invocation_metadata())
        try:
            return await self._inference.call(method, content, metadata)
        except Refusal as refusal:
            grpc_context.set_code(code_of(refusal))
            grpc_context.set_details(refusal.message)
            nothing: Message = MESSAGES[f"{method}Response"]()
            return nothing


def _method(name: str) -> Any:
    async def method(self: GrpcMethods, content: bytes, grpc_context: Any) -> Message:
        return await self._called(name, content, grpc_context)

    return method


for _name in METHODS:
    setattr(GrpcMethods, _name, _method(_name))
