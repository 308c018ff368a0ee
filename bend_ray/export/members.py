"""The members in torch: one as an ONNX graph, and all where there is no ONNX program.

A graph takes normalised inputs to logits, and has the member's tensors as named inputs. Without
weights of its own it stands for every member of an architecture; ``graphs`` fills it in. Chains of
fully connected layers are written down directly, so that ``graphs`` can stack them, and in
milliseconds; anything else goes through torch's exporter, which takes seconds.

Shape letters: K members, N examples, O outputs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from bend_ray.data.columns import encode
from bend_ray.data.examples import Inputs
from bend_ray.ensemble.programs import LOGITS
from bend_ray.export.card import OPSET, Card, noise
from bend_ray.export.graphs import model_of
from bend_ray.networks.dense import leaves
from bend_ray.networks.stacking import Stack, call, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout


def network_of(card: Card) -> nn.Module:
    """One member, untrained; for a network of a user's own this runs his code.

    ConfigError where the code cannot be imported.
    """
    module: nn.Module = card.architecture.build(card.input_shape, card.num_outputs)
    return module.eval()


def normalised(card: Card, inputs: Mapping[str, NDArray[Any]]) -> Inputs:
    """What the network is given of raw inputs by name."""
    if columns := card.columns:
        return torch.from_numpy(encode(columns, inputs))
    found = {}
    for name, own in card.inputs.items():
        values = torch.from_numpy(inputs[name])
        if own.mean is not None and own.std is not None:
            shape = (-1,) + (1,) * (len(own.shape) - 1) if own.shape else ()
            mean, std = (torch.tensor(each).reshape(shape) for each in (own.mean, own.std))
            values = (values.float() - mean) / std
        found[name] = values.float() if own.dtype == "uint8" else values
    return found if len(found) > 1 else next(iter(found.values()))


class Members:
    """Of a bag, as one function; ``state_K`` are their tensors, stacked."""

    def __init__(self, card: Card, state_K: Mapping[str, Any]) -> None:
        self.card = card
        module = network_of(card)
        layout = ParameterLayout.of(module)
        form = form_for(module, "cpu", normalised(card, noise(card, 1)))
        self._stack = Stack(module, layout, form)
        tensors = {name: torch.as_tensor(tensor) for name, tensor in state_K.items()}
        self._theta_KP = layout.flatten(tensors)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> Tensor:
        """What each member makes of raw inputs, ``(K, N, O)``."""
        return predict_logits(self._stack, self._theta_KP, normalised(self.card, inputs))


def member_graph(module: nn.Module, card: Card) -> onnx.ModelProto:
    """A model of ``module``'s structure that takes inputs and every tensor of its state."""
    module.eval()
    return (_chain(module, card) if len(card.network_inputs) == 1 else None) or _traced(
        module, card
    )


def _chain(module: nn.Module, card: Card) -> onnx.ModelProto | None:
    """A chain of fully connected layers; None where there are others."""
    (value,) = card.network_inputs
    nodes: list[onnx.NodeProto] = []
    used: list[str] = []
    for path, layer in leaves(module):
        given, attributes = [value], {}
        if type(layer) is nn.Linear:
            names = [name for name, tensor in layer.named_parameters(path)]
            given, used, operator, attributes = [value, *names], used + names, "Gemm", {"transB": 1}
        elif type(layer) is nn.ReLU:
            operator = "Relu"
        elif type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            operator = "Flatten"
        else:
            return None
        value = f"value{len(nodes)}"
        nodes.append(helper.make_node(operator, given, [value], **attributes))
    nodes[-1].output[:] = [LOGITS]
    return _model(nodes, used, module, card, [])


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
    names = list(card.network_inputs)
    given = normalised(card, noise(card))
    example = tuple(given.values()) if isinstance(given, dict) else (given,)
    batch = {0: torch.export.Dim("batch")}
    # What the exporter tells its own developers is not told; its errors are raised.
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
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
    finally:
        logging.disable(logging.NOTSET)
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
    model = _model(list(graph.node), list(dict.fromkeys(used)), module, card, shared)
    # Only where tensors are inputs: before, it would fold this member's into the graph of all. Else
    # onnxruntime fuses no normalisation: half as fast (measured, convolutions).
    import onnxscript.optimizer

    optimised: onnx.ModelProto = onnxscript.optimizer.optimize(model)
    return optimised


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
    for name, own in card.network_inputs.items():
        dtype = TensorProto.INT64 if own.dtype == "int64" else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(name, dtype, ["batch", *own.shape]))
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(state[name].shape))
        for name in used
    ]
    shape = ["batch", card.num_outputs]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape)]
    return model_of(helper.make_graph(nodes, "member", inputs, outputs, shared))
