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

from bend_ray.ensemble.rule import SMALLEST_PROBABILITY
from bend_ray.export.card import IR_VERSION, OPSET, Card

LOGITS = "logits"
PROBABILITIES, MEMBER_PROBABILITIES = "probabilities", "member_probabilities"
MASS, MEMBER_ENTROPY, CHOICES = "mass", "member_entropy", "choices"
LABELS, ENTROPY, INFORMATION = "labels", "entropy", "information"

Form = Literal["stacked", "unrolled"]
State = Mapping[str, NDArray[np.float32]]
Output = tuple[str, int, list[int | str]]
"""Name, ONNX's number of its type, shape."""

TYPES = {
    "uint8": TensorProto.UINT8,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}
"""ONNX's, of a card's inputs."""

_NORMALISED = ".normalised"
_MEMBER_LOGITS = "member_logits"
_LOG_SHARES, _COOLED = "log_shares", "cooled"


def forms(member: onnx.ModelProto) -> tuple[Form, ...]:
    """The forms that a member's graph allows, the usually faster one first."""
    chain = [node.op_type for node in member.graph.node]
    connected = all(chain[i] in ("Relu", "Gemm") for i in range(1, len(chain)))
    linear = connected and chain[0] in ("Flatten", "Gemm") and not member.graph.initializer
    return ("stacked", "unrolled") if linear else ("unrolled",)


def ballots_program(
    card: Card, member: onnx.ModelProto, state_K: State, weights_K: Sequence[float], form: Form
) -> onnx.ModelProto:
    """Raw inputs, by name, to what some members say, and what they say together.

    Its outputs: ``member_probabilities``, each one's softmax, ``(K, B, C)``; ``mass``, their
    weighted sum ``(B, C)``; ``member_entropy``, the weighted sum of the softmaxes' entropies in
    nats, ``(B,)``; and ``choices``, each one's class, ``(K, B)`` int64. Here they cost a fraction
    of what they cost outside: measured, as much as the members themselves.
    """
    builder = _Builder(card, member, state_K, form)
    builder.ballots(weights_K)
    members, classes = len(builder), len(card.class_names)
    return builder.model(
        [
            (MEMBER_PROBABILITIES, TensorProto.FLOAT, [members, "batch", classes]),
            (MASS, TensorProto.FLOAT, ["batch", classes]),
            (MEMBER_ENTROPY, TensorProto.FLOAT, ["batch"]),
            (CHOICES, TensorProto.INT64, [members, "batch"]),
        ]
    )


def answers_program(
    card: Card, member: onnx.ModelProto, state_K: State, weights_K: Sequence[float], form: Form
) -> onnx.ModelProto:
    """Raw inputs, by name, to all that a whole bag has to say about them.

    Its outputs: ``member_probabilities`` and ``choices`` as of ``ballots_program``; ``labels``
    ``(B,)``; ``probabilities`` ``(B, C)``, with the vote and the temperature; ``entropy`` ``(B,)``,
    theirs, and ``information`` ``(B,)``, the mutual information of label and member in the members'
    own softmaxes, both in nats. What is made of the members' sums is float64. In Python the same
    takes longer than a bag of small members (measured, one image).
    """
    builder = _Builder(card, member, state_K, form)
    builder.ballots(weights_K)
    builder.answers(weights_K)
    members, classes = len(builder), len(card.class_names)
    return builder.model(
        [
            (LABELS, TensorProto.INT64, ["batch"]),
            (PROBABILITIES, TensorProto.DOUBLE, ["batch", classes]),
            (ENTROPY, TensorProto.DOUBLE, ["batch"]),
            (INFORMATION, TensorProto.DOUBLE, ["batch"]),
            (CHOICES, TensorProto.INT64, [members, "batch"]),
            (MEMBER_PROBABILITIES, TensorProto.FLOAT, [members, "batch", classes]),
        ]
    )


def bag_program(card: Card, member: onnx.ModelProto, state_K: State) -> onnx.ModelProto:
    """The whole bag: raw inputs to ``probabilities`` and ``member_probabilities``.

    The first, ``(B, C)``, has the vote and the temperature behind it, the second is each member's
    own softmax, ``(B, K, C)``, in voting order.
    """
    builder = _Builder(card, member, state_K, forms(member)[0])
    builder.vote()
    classes = len(card.class_names)
    return builder.model(
        [
            (PROBABILITIES, TensorProto.FLOAT, ["batch", classes]),
            (MEMBER_PROBABILITIES, TensorProto.FLOAT, ["batch", len(builder), classes]),
        ]
    )


class _Builder:
    """A graph that is being written."""

    def __init__(self, card: Card, member: onnx.ModelProto, state_K: State, form: Form) -> None:
        self.card, self.member, self.state_K = card, member, state_K
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = list(member.graph.initializer)
        self.names = [given.name for given in member.graph.input[len(card.inputs) :]]
        self._normalise()
        if form == "stacked":
            self._stacked()
        else:
            self._unrolled()

    def __len__(self) -> int:
        return len(next(iter(self.state_K.values())))

    def node(self, operator: str, inputs: Iterable[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def tensor(self, name: str, values: object, dtype: type[np.generic] = np.float32) -> str:
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def _normalise(self) -> None:
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

    def _stacked(self) -> None:
        """Every layer of all members as one batched product, ``(K, B, D) @ (K, D, O)``."""
        (name,) = self.card.inputs
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
        renamed |= {name: f"{name}{_NORMALISED}" for name in self.card.inputs}
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

    def ballots(self, weights_K: Sequence[float]) -> None:
        """From every member's logits to what they say together."""
        weights = self.tensor("weights", weights_K)
        negative_weights = self.tensor("negative_weights", [-weight for weight in weights_K])
        self.node("ArgMax", [LOGITS], CHOICES, axis=-1, keepdims=0)
        probs_KBC = self.node("Softmax", [LOGITS], MEMBER_PROBABILITIES, axis=-1)
        self._summed(weights, probs_KBC, MASS)
        logs_KBC = self.node("LogSoftmax", [LOGITS], "logs", axis=-1)
        # A logarithm is finite, so that a probability of zero adds nothing, as it should.
        products = self.node("Mul", [probs_KBC, logs_KBC], "products")
        last = self.tensor("last_axis", [-1], np.int64)
        negative_KB = self.node("ReduceSum", [products, last], "negative_entropies", keepdims=0)
        self.node("MatMul", [negative_weights, negative_KB], MEMBER_ENTROPY)

    def answers(self, weights_K: Sequence[float]) -> None:
        """From the ballots to the answer of the bag and what is known about it."""
        whole = self.tensor("total", sum(weights_K), np.float64)
        mean_BC = self.node("Div", [self._double(MASS), whole], "mean")
        shares_BC = mean_BC
        if self.card.rule.counts_votes:
            exact = self.tensor("exact_weights", weights_K, np.float64)
            counted = self._summed(exact, self._double(self._one_hot(CHOICES)), "counted")
            shares_BC = self.node("Div", [counted, whole], "shares")
        self.node("ArgMax", [shares_BC], LABELS, axis=-1, keepdims=0)
        self._tempered(shares_BC, np.float64)
        if self.card.temperature == 1.0:
            logs_BC = own_logs_BC = self._log(shares_BC, _LOG_SHARES, np.float64)
        else:
            logs_BC = _LOG_SHARES
            own_logs_BC = self.node("LogSoftmax", [_COOLED], "log_probabilities", axis=-1)
        # Never negative but for rounding.
        self.node("Relu", [self._entropy(PROBABILITIES, own_logs_BC)], ENTROPY)
        # Of probabilities that are the members' mean, it is known.
        if self.card.rule.counts_votes:
            all_B = self._entropy(mean_BC, self._log(mean_BC, "log_mean", np.float64))
        elif self.card.temperature != 1.0:
            all_B = self._entropy(mean_BC, logs_BC)
        else:
            all_B = ENTROPY
        own_B = self.node("Div", [self._double(MEMBER_ENTROPY), whole], "own_entropy")
        self.node("Relu", [self.node("Sub", [all_B, own_B], "disagreement")], INFORMATION)

    def _entropy(self, probs_BC: str, logs_BC: str) -> str:
        """In nats, ``(B,)`` float64."""
        products = self.node("Mul", [probs_BC, logs_BC], f"{probs_BC}.log_products")
        last = self.tensor(f"{probs_BC}.classes", [-1], np.int64)
        negative = self.node("ReduceSum", [products, last], f"{probs_BC}.sums", keepdims=0)
        return self.node("Neg", [negative], f"{probs_BC}.entropy")

    def _double(self, name: str) -> str:
        return self.node("Cast", [name], f"{name}.double", to=TensorProto.DOUBLE)

    def _summed(self, weights_K: str, values_KBC: str, output: str) -> str:
        """One product over members for all images and classes at once; ``(B, C)``."""
        rows = self.tensor(f"{values_KBC}.rows", [len(self), -1], np.int64)
        columns = self.tensor(f"{values_KBC}.columns", [-1, len(self.card.class_names)], np.int64)
        flat = self.node("Reshape", [values_KBC, rows], f"{values_KBC}.flat")
        sums = self.node("MatMul", [weights_K, flat], f"{values_KBC}.flat_sums")
        return self.node("Reshape", [sums, columns], output)

    def _log(self, probs: str, output: str, dtype: type[np.floating]) -> str:
        least = self.tensor(f"{output}.least", SMALLEST_PROBABILITY, dtype)
        return self.node("Log", [self.node("Max", [probs, least], f"{output}.clipped")], output)

    def _tempered(self, shares_BC: str, dtype: type[np.floating]) -> None:
        """The bag's shares become its probabilities: where there is a temperature, a softmax."""
        if self.card.temperature == 1.0:
            self.node("Identity", [shares_BC], PROBABILITIES)
            return
        temperature = self.tensor("temperature", self.card.temperature, dtype)
        self.node("Div", [self._log(shares_BC, _LOG_SHARES, dtype), temperature], _COOLED)
        self.node("Softmax", [_COOLED], PROBABILITIES, axis=-1)

    def vote(self) -> None:
        """From every member's logits to the answer of the bag."""
        logits_BKC = self.node("Transpose", [LOGITS], _MEMBER_LOGITS, perm=[1, 0, 2])
        ballots = self.node("Softmax", [logits_BKC], MEMBER_PROBABILITIES, axis=-1)
        if self.card.rule.counts_votes:
            choices = self.node("ArgMax", [logits_BKC], "choice", axis=-1, keepdims=0)
            ballots = self._one_hot(choices)
        shares_1K = self.tensor("vote_shares", [self.card.weights])
        mean_B1C = self.node("MatMul", [shares_1K, ballots], "mean")
        axis = self.tensor("member_axis", [1], np.int64)
        self._tempered(self.node("Squeeze", [mean_B1C, axis], "shares"), np.float32)

    def _one_hot(self, choices: str) -> str:
        depth = self.tensor("num_classes", len(self.card.class_names), np.int64)
        off_on = self.tensor("off_on", [0.0, 1.0])
        return self.node("OneHot", [choices, depth, off_on], "one_hot", axis=-1)

    def model(self, outputs: Sequence[Output]) -> onnx.ModelProto:
        """The graph with those outputs, as a model."""
        inputs = [
            helper.make_tensor_value_info(name, TYPES[own.dtype], ["batch", *own.shape])
            for name, own in self.card.inputs.items()
        ]
        graph = helper.make_graph(
            self.nodes,
            "bag",
            inputs,
            [helper.make_tensor_value_info(*output) for output in outputs],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bend_ray"
        )
        helper.set_model_props(model, {"model_version": self.card.model_version})
        return model
