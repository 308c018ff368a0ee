"""Many members as one ONNX graph, made of one member's graph and the members' tensors.

Two forms compute the same. ``stacked``: all members in each batched matrix product, for chains of
fully connected layers. ``unrolled``: the members side by side, for any network.

Shape letters: K members, B examples, C classes, D inputs of a layer, O outputs of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bend_ray.data.arrays import SINGLE
from bend_ray.data.columns import Column
from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY
from bend_ray.export.card import IR_VERSION, OPSET, Card

LOGITS = "logits"
PROBABILITIES, MEMBER_PROBABILITIES = "probabilities", "member_probabilities"
LABEL, MEMBER_LABELS = "label", "member_labels"
ENTROPY, INFORMATION = "entropy", "mutual_information"

Form = Literal["stacked", "unrolled"]
State = Mapping[str, NDArray[np.float32]]


_NORMALISED = ".normalised"
ML = "ai.onnx.ml"
"""The domain of the operator that looks texts up."""


def forms(member: onnx.ModelProto) -> tuple[Form, ...]:
    """The forms that a member's graph allows, the usually faster one first."""
    chain = [node.op_type for node in member.graph.node]
    connected = all(chain[i] in ("Relu", "Gemm") for i in range(1, len(chain)))
    linear = connected and chain[0] in ("Flatten", "Gemm") and not member.graph.initializer
    return ("stacked", "unrolled") if linear else ("unrolled",)


def bag_program(
    card: Card, member: onnx.ModelProto, state_K: State, weights_K: Sequence[float], form: Form
) -> onnx.ModelProto:
    """Raw inputs, by name, to all that some members, or the whole bag, have to say about them.

    Its outputs: ``probabilities`` ``(B, C)``, with the vote and the temperature;
    ``member_probabilities`` ``(B, K, C)``, each member's own softmax in voting order, float32;
    ``label`` ``(B,)``; ``entropy`` ``(B,)``, of the probabilities, and ``mutual_information``
    ``(B,)``, of label and member in the members' own softmaxes, both in nats; ``member_labels``
    ``(B, K)``. What is made of the members' sums is float64. In Python the same takes longer than
    a bag of small members (measured, one image).
    """
    builder = _Builder(card, member, state_K, form)
    builder.answer(weights_K)
    return builder.model()


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


class _Builder:
    """A graph that is being written."""

    def __init__(self, card: Card, member: onnx.ModelProto, state_K: State, form: Form) -> None:
        self.card, self.member, self.state_K = card, member, state_K
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = list(member.graph.initializer)
        self.names = [given.name for given in member.graph.input[len(card.network_inputs) :]]
        self._normalise()
        if form == "stacked":
            self._stacked()
        else:
            self._unrolled()

    def __len__(self) -> int:
        return len(next(iter(self.state_K.values())))

    def node(self, operator: str, inputs: Iterable[str], output: str, **attributes: object) -> str:
        output = self._free(output)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def tensor(self, name: str, values: object, dtype: type[np.generic] = np.float32) -> str:
        name = self._free(name)
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def _free(self, name: str) -> str:
        """The name, unless a column has it."""
        return f"{name}'" if name in self.card.columns else name

    def _normalise(self) -> None:
        if columns := self.card.columns:
            parts = [part for name in columns for part in self._encoded(name, columns[name])]
            self.node("Concat", parts, f"{SINGLE}{_NORMALISED}", axis=1)
            return
        for name, own in self.card.inputs.items():
            value, ready = name, f"{name}{_NORMALISED}"
            if own.dtype == "uint8" and own.mean is None:
                self.node("Cast", [value], ready, to=TensorProto.FLOAT)
            elif own.mean is None:
                self.node("Identity", [value], ready)
            else:
                broadcast = (-1,) + (1,) * (len(own.shape) - 1) if own.shape else ()
                mean = self.tensor(f"{name}.mean", np.reshape(own.mean, broadcast))
                std = self.tensor(f"{name}.std", np.reshape(own.std or (), broadcast))
                value = self.node("Cast", [value], f"{name}.float", to=TensorProto.FLOAT)
                self.node("Div", [self.node("Sub", [value, mean], f"{name}.centred"), std], ready)

    def _encoded(self, name: str, column: Column) -> list[str]:
        """What becomes of a raw column ``(B,)``, as ``Column.encode`` has it: ``(B, width)``."""
        last = self.tensor(f"{name}.last", [1], np.int64)
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
        knots, scores = np.array(column.knots), np.array(column.scores)
        lacks = self.node("IsNaN", [name], f"{name}.lacks")
        some = self.tensor(f"{name}.some", knots[0], np.float64)
        known = self.node("Where", [lacks, some, name], f"{name}.known")
        value = self.node("Unsqueeze", [known, last], f"{name}.value")
        low = self.tensor(f"{name}.knots", knots[:-1] if len(knots) > 1 else knots, np.float64)
        zero = self.tensor(f"{name}.zero", 0.0, np.float64)
        spans = np.diff(knots) if len(knots) > 1 else np.ones(1)
        rises = np.diff(scores) if len(knots) > 1 else np.zeros(1)
        width = self.tensor(f"{name}.spans", spans, np.float64)
        above = self.node(
            "Max", [self.node("Sub", [value, low], f"{name}.off"), zero], f"{name}.up"
        )
        share = self.node(
            "Div", [self.node("Min", [above, width], f"{name}.cut"), width], f"{name}.share"
        )
        rise = self.tensor(f"{name}.rises", rises[:, None], np.float64)
        first = self.tensor(f"{name}.first", scores[0], np.float64)
        risen = self.node("MatMul", [share, rise], f"{name}.risen")
        score = self.node("Add", [risen, first], f"{name}.score")
        flag = self.node("Unsqueeze", [lacks, last], f"{name}.flag")
        filled = self.node("Where", [flag, zero, score], f"{name}.filled")
        found = [self.node("Cast", [filled], f"{name}.ready", to=TensorProto.FLOAT)]
        if column.missing:
            found.append(self.node("Cast", [flag], f"{name}.missing", to=TensorProto.FLOAT))
        return found

    def _stacked(self) -> None:
        """Every layer of all members as one batched product, ``(K, B, D) @ (K, D, O)``."""
        (name,) = self.card.network_inputs
        value = f"{name}{_NORMALISED}"
        for index, node in enumerate(self.member.graph.node):
            out = f"stacked{index}"
            if node.op_type != "Gemm":
                value = self.node(
                    node.op_type, [value], out, **{a.name: a.i for a in node.attribute}
                )
                continue
            weight_KOD = self.state_K[node.input[1]]
            weight = self.tensor(node.input[1], weight_KOD.transpose(0, 2, 1))
            value = self.node(
                "MatMul", [value, weight], f"{out}.product" if node.input[2:] else out
            )
            if node.input[2:]:
                bias = self.tensor(node.input[2], self.state_K[node.input[2]][:, None, :])
                value = self.node("Add", [value, bias], out)
        self.node("Identity", [value], LOGITS)

    def _unrolled(self) -> None:
        """One member after another; what reads the same inputs may run at the same time."""
        read = {name for node in self.member.graph.node for name in node.input}
        own = [name for name in self.names if name in read]
        logits = [self._one(k, own) for k in range(len(self))]
        # An operator a member less than to stack them: 1 to 5 % of small ones at one image.
        rows = self.node("Concat", logits, "rows", axis=0)
        shape = self.tensor("members", [len(self), -1, len(self.card.class_names)], np.int64)
        self.node("Reshape", [rows, shape], LOGITS)

    def _one(self, k: int, own: Iterable[str]) -> str:
        shared = {tensor.name for tensor in self.member.graph.initializer} | {""}
        renamed = {name: name for name in shared}
        renamed |= {name: f"{name}{_NORMALISED}" for name in self.card.network_inputs}
        for name in own:
            renamed[name] = self.tensor(f"m{k}.{name}", self.state_K[name][k])
        for node in self.member.graph.node:
            self._copy(node, renamed, f"m{k}")
        return f"m{k}.{LOGITS}"

    def _copy(self, node: onnx.NodeProto, renamed: dict[str, str], prefix: str) -> None:
        """The node on other values; ``renamed`` learns what its own are called."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}.{node.name}" if node.name else ""
        copy.input[:] = [renamed[name] for name in node.input]
        copy.output[:] = [f"{prefix}.{name}" if name else "" for name in node.output]
        renamed |= dict(zip(node.output, copy.output, strict=True))
        self.nodes.append(copy)

    def answer(self, weights_K: Sequence[float]) -> None:
        """From every member's logits to the answer of the bag and what is known about it."""
        weights = self.tensor("weights", weights_K, np.float64)
        whole = self.tensor("total", sum(weights_K), np.float64)
        logits_BKC = self.node("Transpose", [LOGITS], "logits_of_each", perm=[1, 0, 2])
        probs_BKC = self.node("Softmax", [logits_BKC], MEMBER_PROBABILITIES, axis=-1)
        labels_BK = self.node("ArgMax", [logits_BKC], MEMBER_LABELS, axis=-1, keepdims=0)
        # A logarithm is finite, so that a probability of zero adds nothing, as it should.
        logs_BKC = self.node("LogSoftmax", [logits_BKC], "logs", axis=-1)
        own_BK = self._double(self._entropy(probs_BKC, logs_BKC))
        own_sum_B = self.node("MatMul", [own_BK, weights], "own_sum")
        own_B = self.node("Div", [own_sum_B, whole], "own_entropy")
        mean_BC = shares_BC = self._mean(probs_BKC, weights, whole)
        if self.card.rule.counts_votes:
            shares_BC = self._mean(self._one_hot(labels_BK), weights, whole)
        self.node("ArgMax", [shares_BC], LABEL, axis=-1, keepdims=0)
        logs_BC = self._log(shares_BC)
        if self.card.temperature == 1.0:
            self.node("Identity", [shares_BC], PROBABILITIES)
        else:
            temperature = self.tensor("temperature", self.card.temperature, np.float64)
            cooled_BC = self.node("Div", [logs_BC, temperature], "cooled")
            self.node("Softmax", [cooled_BC], PROBABILITIES, axis=-1)
            logs_BC = self.node("LogSoftmax", [cooled_BC], "log_probabilities", axis=-1)
        # Never negative but for rounding.
        self.node("Relu", [self._entropy(PROBABILITIES, logs_BC)], ENTROPY)
        all_B = self._entropy(mean_BC, self._log(mean_BC))
        self.node("Relu", [self.node("Sub", [all_B, own_B], "disagreement")], INFORMATION)

    def _mean(self, values_BKC: str, weights: str, whole: str) -> str:
        """Over the members, ``(B, C)`` float64."""
        sums_BC = self.node("MatMul", [weights, self._double(values_BKC)], f"{values_BKC}.sum")
        return self.node("Div", [sums_BC, whole], f"{values_BKC}.mean")

    def _entropy(self, probs: str, logs: str) -> str:
        """In nats, over the classes."""
        products = self.node("Mul", [probs, logs], f"{probs}.log_products")
        last = self.tensor(f"{probs}.classes", [-1], np.int64)
        negative = self.node("ReduceSum", [products, last], f"{probs}.sums", keepdims=0)
        return self.node("Neg", [negative], f"{probs}.entropy")

    def _double(self, name: str) -> str:
        return self.node("Cast", [name], f"{name}.double", to=TensorProto.DOUBLE)

    def _log(self, probs: str) -> str:
        if f"{probs}.log" in {node.output[0] for node in self.nodes}:
            return f"{probs}.log"
        least = self.tensor(f"{probs}.least", SMALLEST_PROBABILITY, np.float64)
        clipped = self.node("Max", [probs, least], f"{probs}.clipped")
        return self.node("Log", [clipped], f"{probs}.log")

    def _one_hot(self, choices: str) -> str:
        depth = self.tensor("num_classes", len(self.card.class_names), np.int64)
        off_on = self.tensor("off_on", [0.0, 1.0])
        return self.node("OneHot", [choices, depth, off_on], "one_hot", axis=-1)

    def model(self) -> onnx.ModelProto:
        """What was written, as a model."""
        members, classes = len(self), len(self.card.class_names)
        outputs: list[tuple[str, int, list[int | str]]] = [
            (PROBABILITIES, TensorProto.DOUBLE, ["batch", classes]),
            (MEMBER_PROBABILITIES, TensorProto.FLOAT, ["batch", members, classes]),
            (LABEL, TensorProto.INT64, ["batch"]),
            (ENTROPY, TensorProto.DOUBLE, ["batch"]),
            (INFORMATION, TensorProto.DOUBLE, ["batch"]),
            (MEMBER_LABELS, TensorProto.INT64, ["batch", members]),
        ]
        inputs = [
            helper.make_tensor_value_info(name, _onnx_type(own.dtype), ["batch", *own.shape])
            for name, own in self.card.inputs.items()
        ]
        given = [helper.make_tensor_value_info(*output) for output in outputs]
        model = model_of(helper.make_graph(self.nodes, "bag", inputs, given, self.tensors))
        helper.set_model_props(model, {"model_version": self.card.model_version})
        return model
