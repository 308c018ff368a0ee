"""One member as an ONNX graph: normalised inputs to logits, its tensors as named inputs.

Without weights of its own a graph stands for every member of an architecture; ``graphs`` fills
it in. Chains of common layers are written down directly, which takes milliseconds and gives a
graph without shape arithmetic; anything else goes through torch's exporter, which takes seconds.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from bend_ray.export.card import IR_VERSION, OPSET, Card, noise
from bend_ray.export.graphs import LOGITS
from bend_ray.export.members import normalised
from bend_ray.networks.calls import call
from bend_ray.networks.dense import leaves

Node = tuple[str, list[str], dict[str, Any]]
"""Operator, names of its tensors beside the running value, attributes."""


def member_graph(module: nn.Module, card: Card) -> onnx.ModelProto:
    """A model of ``module``'s structure that takes inputs and every tensor of its state."""
    module.eval()
    chain = _chain(module) if len(card.inputs) == 1 else None
    if chain is None:
        return _traced(module, card)
    (value,) = card.inputs
    nodes: list[onnx.NodeProto] = []
    used: list[str] = []
    for index, (operator, names, attributes) in enumerate(chain):
        output = LOGITS if index == len(chain) - 1 else f"value{index}"
        nodes.append(helper.make_node(operator, [value, *names], [output], **attributes))
        value, used = output, used + names
    return _model(nodes, used, module, card, [])


def _chain(module: nn.Module) -> list[Node] | None:
    """The operators of a sequence of known layers; None where there are others."""
    chain: list[Node] = []
    for path, layer in leaves(module):
        written = _LAYERS.get(type(layer))
        node = written(layer, f"{path}." if path else "") if written else None
        if node is None:
            return None
        chain.append(node)
    return chain


def _linear(layer: nn.Linear, name: str) -> Node:
    biases = [f"{name}bias"] if layer.bias is not None else []
    return "Gemm", [f"{name}weight", *biases], {"transB": 1}


def _conv(layer: nn.Conv2d, name: str) -> Node | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    names = [f"{name}weight"] + ([f"{name}bias"] if layer.bias is not None else [])
    attributes = {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "pads": list(layer.padding) * 2,
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    return "Conv", names, attributes


def _batchnorm(layer: nn.BatchNorm2d, name: str) -> Node | None:
    if not (layer.affine and layer.track_running_stats):
        return None
    tensors = ("weight", "bias", "running_mean", "running_var")
    return "BatchNormalization", [f"{name}{t}" for t in tensors], {"epsilon": layer.eps}


def _max_pool(layer: nn.MaxPool2d, name: str) -> Node | None:
    # ONNX wants pairs, and knows no dilation of a pool that torch has as a single number.
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    if layer.ceil_mode or layer.dilation not in (1, (1, 1)):
        return None
    kernel, stride, padding = ([s, s] if isinstance(s, int) else list(s) for s in sizes)
    return "MaxPool", [], {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}


def _average_pool(layer: nn.AdaptiveAvgPool2d, name: str) -> Node | None:
    whole = layer.output_size in (1, (1, 1))
    return ("GlobalAveragePool", [], {}) if whole else None


def _flatten(layer: nn.Flatten, name: str) -> Node | None:
    return ("Flatten", [], {"axis": 1}) if (layer.start_dim, layer.end_dim) == (1, -1) else None


_LAYERS: dict[type[nn.Module], Callable[[Any, str], Node | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batchnorm,
    nn.ReLU: lambda layer, name: ("Relu", [], {}),
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _average_pool,
    nn.Flatten: _flatten,
}


class _Logits(nn.Module):
    """A network as one that takes its inputs in order and gives logits alone."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return call(self.network, named if len(named) > 1 else inputs[0])


def _traced(module: nn.Module, card: Card) -> onnx.ModelProto:
    """The same through ``torch.onnx``, whose unoptimised graph keeps the names of the state."""
    names = list(card.inputs)
    given = normalised(card, noise(card))
    example = tuple(given.values()) if isinstance(given, dict) else (given,)
    batch = {0: torch.export.Dim("batch")}
    with _quiet():
        program = torch.onnx.export(
            _Logits(module, names),
            example,
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=((batch,) * len(example),),
            input_names=names,
            output_names=[LOGITS],
            opset_version=OPSET,
        )
    assert program is not None
    graph = program.model_proto.graph
    called = _names(module)
    for node in graph.node:
        node.input[:] = [called.get(name, name) for name in node.input]
    for tensor in graph.initializer:
        tensor.name = called.get(tensor.name, tensor.name)
    # A buffer of whole numbers, as Swin's indices, is every member's.
    own = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    shared = [tensor for tensor in graph.initializer if tensor.name not in own]
    used = [tensor.name for tensor in graph.initializer if tensor.name in own]
    return _model(list(graph.node), list(dict.fromkeys(used)), module, card, shared)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells its own developers; its errors are raised."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _names(module: nn.Module) -> dict[str, str]:
    """What tensors are called in the graph, to their names in the state; tied ones have one."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {f"network.{n}": first.setdefault(id(tensor), n) for n, tensor in state.items()}


def _model(
    nodes: list[onnx.NodeProto],
    used: list[str],
    module: nn.Module,
    card: Card,
    shared: list[onnx.TensorProto],
) -> onnx.ModelProto:
    state = module.state_dict()
    inputs = []
    for name, own in card.inputs.items():
        dtype = TensorProto.INT64 if own.dtype == "int64" else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(name, dtype, ["batch", *own.shape]))
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(state[name].shape))
        for name in used
    ]
    shape = ["batch", len(card.class_names)]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "member", inputs, outputs, shared)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
