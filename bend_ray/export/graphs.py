"""Many members as one ONNX graph, made of one member's graph and the members' tensors, and run.

Two forms compute the same. ``stacked``: all members in each batched matrix product, for chains of
fully connected layers. ``unrolled``: the members side by side, for any network. What their outputs
mean the task says, in ONNX's operators: see ``ensemble.programs``. How a graph is run on a machine
is chosen by measuring, when a bag is loaded.

Shape letters: K members, B examples, D inputs of a layer, O outputs of it, or of the network.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bend_ray.data.arrays import SINGLE
from bend_ray.data.columns import Column
from bend_ray.ensemble.programs import LOGITS, Outputs
from bend_ray.export.card import IR_VERSION, OPSET, Card, noise

logger = logging.getLogger(__name__)

Form = Literal["stacked", "unrolled"]
State = Mapping[str, NDArray[np.float32]]
Ask = Callable[[Outputs], Outputs]
"""A program that is ready to run: its inputs to its outputs, by name."""

BUDGET_SECONDS = 0.3
"""For measuring one way at one batch size, when a bag is loaded."""
_REPEATS = 15
_NORMALISED = ".normalised"
ML = "ai.onnx.ml"
"""The domain of the operator that looks texts up."""
WEIGHTS = "weights"
"""An input of ``count_program``, of each member ``(B, 1, K)``: 0 where it was not asked."""


def forms(member: onnx.ModelProto) -> tuple[Form, ...]:
    """The forms that a member's graph allows, the usually faster one first."""
    chain = [node.op_type for node in member.graph.node]
    connected = all(chain[i] in ("Relu", "Gemm") for i in range(1, len(chain)))
    linear = connected and chain[0] in ("Flatten", "Gemm") and not member.graph.initializer
    return ("stacked", "unrolled") if linear else ("unrolled",)


def bag_program(card: Card, member: onnx.ModelProto, state_K: State, form: Form) -> onnx.ModelProto:
    """Raw inputs, by name, to all that the bag has to say about them: the task's ``outputs``.

    With the vote, the temperature, and every member's own. In Python the same takes longer than a
    bag of small members (measured, one image).
    """
    builder = _Builder(card)
    builder.ask_members(member, state_K, form)
    card.task.say(builder.operators)
    builder.tensor(WEIGHTS, [[card.rule.sums_exactly]], np.float64)
    card.task.answer(builder.operators, card.rule)
    return builder.model(card.task.outputs)


def members_program(
    card: Card, member: onnx.ModelProto, state_K: State, form: Form
) -> onnx.ModelProto:
    """Raw inputs, by name, to what some members say, each for itself."""
    builder = _Builder(card)
    builder.ask_members(member, state_K, form)
    card.task.say(builder.operators)
    return builder.model(members_outputs(card))


def count_program(card: Card, *, of_logits: bool) -> onnx.ModelProto:
    """What members say, or their ``logits``, and ``weights``, to what the bag says."""
    builder = _Builder(card)
    if of_logits:
        builder.take(LOGITS, TensorProto.FLOAT, ["members", "batch", card.num_outputs])
        card.task.say(builder.operators)
    else:
        for name in members_outputs(card):
            builder.take(name, *builder.shaped(name))
    builder.take(WEIGHTS, TensorProto.DOUBLE, ["asked", 1, len(card.members)])
    card.task.answer(builder.operators, card.rule)
    return builder.model([n for n in card.task.outputs if of_logits or n not in builder.given])


def members_outputs(card: Card) -> list[str]:
    """Which outputs have a row a member."""
    return [name for name, (_, dims) in card.task.outputs.items() if "K" in dims]


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A graph as a program, of the versions that the card names."""
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == ML for node in graph.node):
        opsets.append(helper.make_opsetid(ML, 3))
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bend_ray"
    )


def _onnx_type(dtype: str) -> int:
    if dtype == "string":
        return int(TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class _Operators:
    """Writes into a graph: see ``ensemble.programs.Operators``."""

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        return partial(self._builder.write, operator)


class _Builder:
    """A graph that is being written."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.given: dict[str, onnx.ValueInfoProto] = {}
        self.constants = card.task.constants(card.rule, len(card.class_names))
        self.operators = _Operators(self)
        self._raw: list[str] = []

    def take(self, name: str, dtype: int, shape: list[str | int]) -> None:
        """An input of the program."""
        self.given[name] = helper.make_tensor_value_info(name, dtype, shape)

    def shaped(self, name: str) -> tuple[int, list[str | int]]:
        """Type and shape of an output of the task's."""
        dtype, dims = self.card.task.outputs[name]
        sizes: dict[str, str | int] = {"K": "members", "C": len(self.card.class_names)}
        return _onnx_type(dtype), ["batch", *(sizes[dim] for dim in dims)]

    def node(self, operator: str, inputs: Iterable[str], output: str, **attributes: object) -> str:
        output = self._free(output)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def tensor(self, name: str, values: object, dtype: type[np.generic] = np.float32) -> str:
        name = self._free(name)
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def write(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> Any:
        """See ``ensemble.programs.Operators``."""
        named = name or f"{operator}.{len(self.nodes)}"
        count = attributes.get("num_outputs", 1)
        outputs = [self._free(named)] if count == 1 else [f"{named}.{n}" for n in range(count)]
        own = [self._free(each) for each in inputs]
        self.nodes.append(helper.make_node(operator, own, outputs, **attributes))
        return outputs[0] if count == 1 else outputs

    def _free(self, name: str) -> str:
        """The name, unless a raw input has it: then one that none has."""
        return name.ljust(1 + max(map(len, self._raw)), "'") if name in self._raw else name

    def ask_members(self, member: onnx.ModelProto, state_K: State, form: Form) -> None:
        """From raw inputs to ``logits`` ``(K, B, O)``."""
        self._raw = list(self.card.inputs)
        for name, own in self.card.inputs.items():
            self.take(name, _onnx_type(own.dtype), ["batch", *own.shape])
        self.tensors += member.graph.initializer
        self._normalise()
        (self._stacked if form == "stacked" else self._unrolled)(member.graph, state_K)

    def _normalise(self) -> None:
        if columns := self.card.columns:
            parts = [part for name in columns for part in self._encoded(name, columns[name])]
            self.node("Concat", parts, f"{SINGLE}{_NORMALISED}", axis=1)
            return
        for name, own in self.card.inputs.items():
            ready = f"{name}{_NORMALISED}"
            if own.mean is None:
                given = "float32" if own.dtype == "uint8" else own.dtype
                self.node("Cast", [name], ready, to=_onnx_type(given))
                continue
            broadcast = (-1,) + (1,) * (len(own.shape) - 1) if own.shape else ()
            mean = self.tensor(f"{name}.mean", np.reshape(own.mean, broadcast))
            std = self.tensor(f"{name}.std", np.reshape(own.std or (), broadcast))
            value = self.node("Cast", [name], f"{name}.float", to=TensorProto.FLOAT)
            self.node("Div", [self.node("Sub", [value, mean], f"{name}.centred"), std], ready)

    def _encoded(self, name: str, column: Column) -> list[str]:
        """What becomes of a raw column ``(B,)``, as ``Column.encode`` has it: ``(B, width)``."""
        if column.kind == "category":
            keys = [*column.levels, *([""] if column.missing else [])]
            # An index beyond the depth is no level.
            place = self.node(
                *("LabelEncoder", [name], f"{name}.place"),
                domain=ML,
                keys_strings=keys,
                values_int64s=range(len(keys)),
                default_int64=len(keys),
            )
            depth = self.tensor(f"{name}.depth", len(keys), np.int64)
            off_on = self.tensor(f"{name}.off_on", [0.0, 1.0])
            return [self.node("OneHot", [place, depth, off_on], f"{name}.one_hot", axis=-1)]
        knots, scores = (np.array(each) for each in (column.knots, column.scores))
        one = len(knots) == 1
        last = self.tensor(f"{name}.last", [1], np.int64)
        constants = {
            "some": knots[0],
            "zero": 0.0,
            "first": scores[0],
            "low": knots if one else knots[:-1],
            "spans": np.ones(1) if one else np.diff(knots),
            "rises": np.zeros((1, 1)) if one else np.diff(scores)[:, None],
        }
        some, zero, first, low, spans, rises = (
            self.tensor(f"{name}.{key}", values, np.float64) for key, values in constants.items()
        )
        op, lacks = self.operators, self.node("IsNaN", [name], f"{name}.lacks")
        known = self.node("Where", [lacks, some, name], f"{name}.known")
        within = op.Min(op.Max(op.Sub(op.Unsqueeze(known, last), low), zero), spans)
        score = op.Add(op.MatMul(op.Div(within, spans), rises), first)
        flag = op.Unsqueeze(lacks, last)
        told = [op.Where(flag, zero, score), flag][: 1 + column.missing]
        return [op.Cast(each, to=TensorProto.FLOAT) for each in told]

    def _stacked(self, member: onnx.GraphProto, state_K: State) -> None:
        """Every layer of all members as one batched product, ``(K, B, D) @ (K, D, O)``."""
        (name,) = self.card.network_inputs
        value = self._free(f"{name}{_NORMALISED}")
        for index, node in enumerate(member.node):
            out = f"stacked{index}"
            if node.op_type != "Gemm":
                value = self.node(
                    node.op_type, [value], out, **{a.name: a.i for a in node.attribute}
                )
                continue
            weight = self.tensor(node.input[1], state_K[node.input[1]].transpose(0, 2, 1))
            value = self.node(
                "MatMul", [value, weight], f"{out}.product" if node.input[2:] else out
            )
            if node.input[2:]:
                bias = self.tensor(node.input[2], state_K[node.input[2]][:, None, :])
                value = self.node("Add", [value, bias], out)
        self.node("Identity", [value], LOGITS)

    def _unrolled(self, member: onnx.GraphProto, state_K: State) -> None:
        """One member after another; what reads the same inputs may run at the same time."""
        read = {name for node in member.node for name in node.input}
        own = [name for name in state_K if name in read]
        count = len(next(iter(state_K.values())))
        shared = {name: name for name in ("", *(tensor.name for tensor in member.initializer))}
        shared |= {name: self._free(f"{name}{_NORMALISED}") for name in self.card.network_inputs}
        for k in range(count):
            renamed = shared | {n: self.tensor(f"m{k}.{n}", state_K[n][k]) for n in own}
            for node in member.node:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copy.name = f"m{k}.{node.name}" if node.name else ""
                copy.input[:] = [renamed[name] for name in node.input]
                copy.output[:] = [f"m{k}.{name}" if name else "" for name in node.output]
                renamed |= dict(zip(node.output, copy.output, strict=True))
                self.nodes.append(copy)
        # An operator a member less than to stack them: 1 to 5 % of small ones at one image.
        rows = self.node("Concat", [f"m{k}.{LOGITS}" for k in range(count)], "rows", axis=0)
        shape = self.tensor("members", [count, -1, self.card.num_outputs], np.int64)
        self.node("Reshape", [rows, shape], LOGITS)

    def model(self, outputs: Iterable[str]) -> onnx.ModelProto:
        """What was written, as a model with some of the task's outputs."""
        read = {name for node in self.nodes for name in node.input}
        for name, values in self.constants.items():
            if self._free(name) in read:
                self.tensor(name, values, values.dtype.type)
        told = [helper.make_tensor_value_info(name, *self.shaped(name)) for name in outputs]
        graph = helper.make_graph(self.nodes, "bag", [*self.given.values()], told, self.tensors)
        model = model_of(graph)
        helper.set_model_props(model, {"model_version": self.card.model_version})
        return model


@dataclass(frozen=True)
class Way:
    """One way to run a graph: ``threads`` share an operator, or where ``parallel`` all of them."""

    form: Form
    threads: int
    parallel: bool = False

    def __str__(self) -> str:
        of = "operators in parallel" if self.parallel else "one operator after the other"
        return f"a graph of {self.form} members on {self.threads} threads, {of}"

    def ready(self, model: onnx.ModelProto) -> Ask:
        """The graph, optimised and ready to run."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1 if self.parallel else self.threads
        options.inter_op_num_threads = self.threads if self.parallel else 1
        if self.parallel:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        # Waiting threads must not burn the CPU of whoever reads the requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def ways(forms: tuple[Form, ...], threads: int) -> list[Way]:
    """What is worth trying with so many threads."""
    found = [Way(form, count) for count in sorted({1, threads}) for form in forms]
    if threads > 1 and "unrolled" in forms:
        found.append(Way("unrolled", threads, parallel=True))
    return found


def fastest(
    candidates: list[Way],
    build: Callable[[Form], onnx.ModelProto],
    card: Card,
    batch: int,
) -> Way:
    """The way with the least time, one example and a whole batch counting the same."""
    if len(candidates) == 1:
        return candidates[0]
    times = {}
    for way in candidates:
        ask = way.ready(build(way.form))
        times[way] = [_median(ask, noise(card, count)) for count in (1, batch)]
        logger.debug("%s: %s s", way, times[way])
    best = [min(column) for column in zip(*times.values(), strict=True)]
    return min(times, key=lambda way: sum(t / b for t, b in zip(times[way], best, strict=True)))


def _median(ask: Ask, inputs: Outputs) -> float:
    ask(inputs)  # the first run allocates
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < BUDGET_SECONDS:
        started = time.perf_counter()
        ask(inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
