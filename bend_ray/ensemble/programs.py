"""What the program of an exported bag computes of a task, and how its outputs are told.

In ONNX's own text and in numpy, as who serves has no torch. A program has two parts: what each
member says, of ``logits`` ``(K, B, O)``, and what they say together, of that and of ``weights``
``(B, 1, K)``, which are 0 of a member that was not asked.

Shape letters: K members, B examples, O outputs of a network, C classes, T targets, A numbers of an
answer: probabilities, or means and then variances.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY, SMALLEST_VARIANCE
from bend_ray.ensemble.votes import Rule
from bend_ray.errors import ConfigError, DataError

Outputs = Mapping[str, NDArray[Any]]
"""Of a program, by name, each with the examples as its first dimension."""

LOGITS = "logits"
"""What a member's network answers."""
LOG_VARIANCES = (-12.0, 6.0)
"""Within which a head's are taken, of standardised targets: beyond, the loss has no floor."""

_CLASSES_SAID = """
logits_BKC = Transpose <perm = [1, 0, 2]> (logits)
member_probabilities = Softmax <axis = -1> (logits_BKC)
member_labels = ArgMax <axis = -1, keepdims = 0> (logits_BKC)
"""
_CLASSES_TOGETHER = """
probs_BKC = Cast <to = 11> (member_probabilities)
one_hot_BKC = OneHot <axis = -1> (member_labels, num_classes, off_on)
choices_BKC = Cast <to = 11> (one_hot_BKC)
total_B11 = ReduceSum (weights, last)
asked_B1K = Greater (weights, zero)
ones_B1K = Cast <to = 11> (asked_B1K)
chosen_B1C = MatMul (ones_B1K, choices_BKC)
chosen_BC = Squeeze (chosen_B1C, middle)
votes = Cast <to = 7> (chosen_BC)
sum_B1C = MatMul (weights, probs_BKC)
mean_B1C = Div (sum_B1C, total_B11)
counted_B1C = MatMul (weights, {ballots})
shares_B1C = Div (counted_B1C, total_B11)
label_B1 = ArgMax <axis = -1, keepdims = 0> (shares_B1C)
label = Squeeze (label_B1, middle)
shares_BC = Squeeze (shares_B1C, middle)
"""
_SCALED = """
likely_BC = Max (shares_BC, least)
logs_BC = Log (likely_BC)
cooled_BC = Div (logs_BC, temperature)
probabilities = Softmax <axis = -1> (cooled_BC)
"""
_NEGATIVE_ENTROPY = """
{of}_likely = Max ({of}, least)
{of}_logs = Log ({of}_likely)
{of}_products = Mul ({of}, {of}_logs)
{of}_sum = ReduceSum ({of}_products, last)
"""
_CLASSES_UNSURE = """
own_B11 = MatMul (weights, probs_BKC_sum)
own_mean_B11 = Div (own_B11, total_B11)
gain_B11 = Sub (own_mean_B11, mean_B1C_sum)
gain_B = Squeeze (gain_B11, both)
mutual_information = Relu (gain_B)
minus_B = Squeeze (probabilities_sum, middle)
entropy_B = Neg (minus_B)
entropy = Relu (entropy_B)
"""

_HEAD = """
mean_BKT, log_BKT = Split <axis = -1, num_outputs = 2> (wide_BKO)
"""
_NO_HEAD = """
mean_BKT = Identity (wide_BKO)
log_BKT = Sub (wide_BKO, wide_BKO)
"""
_NUMBERS_SAID = """
rows_BKO = Transpose <perm = [1, 0, 2]> (logits)
wide_BKO = Cast <to = 11> (rows_BKO)
{head}
scaled_BKT = Mul (mean_BKT, unit)
member_means = Add (scaled_BKT, centre)
clipped_BKT = Clip (log_BKT, low, high)
halved_BKT = Mul (clipped_BKT, half)
root_BKT = Exp (halved_BKT)
member_stds = Mul (root_BKT, unit)
"""
_NUMBERS_TOGETHER = """
total_B11 = ReduceSum (weights, last)
sum_B1T = MatMul (weights, member_means)
mean_B1T = Div (sum_B1T, total_B11)
off_BKT = Sub (member_means, mean_B1T)
apart_BKT = Mul (off_BKT, off_BKT)
own_BKT = Mul (member_stds, member_stds)
each_BKT = Add (apart_BKT, own_BKT)
sums_B1T = MatMul (weights, each_BKT)
plain_B1T = Div (sums_B1T, total_B11)
mixed_B1T = Max (plain_B1T, least)
variance_B1T = Mul (mixed_B1T, scale)
std_B1T = Sqrt (variance_B1T)
mean = Squeeze (mean_B1T, middle)
std = Squeeze (std_B1T, middle)
log_B1T = Log (variance_B1T)
log_mean_B = ReduceMean <keepdims = 0> (log_B1T, both)
halved_B = Mul (log_mean_B, half)
entropy = Add (halved_B, normal)
mixed_log_B1T = Log (mixed_B1T)
mixed_mean_B11 = ReduceMean (mixed_log_B1T, last)
own_floor_BKT = Max (own_BKT, least)
own_log_BKT = Log (own_floor_BKT)
own_mean_BK1 = ReduceMean (own_log_BKT, last)
own_sum_B11 = MatMul (weights, own_mean_BK1)
own_B11 = Div (own_sum_B11, total_B11)
gain_B11 = Sub (mixed_mean_B11, own_B11)
half_gain_B11 = Mul (gain_B11, half)
gain_B = Squeeze (half_gain_B11, both)
mutual_information = Relu (gain_B)
"""
_AXES = {"last": np.array([-1]), "middle": np.array([1]), "both": np.array([1, 2])}


def check_names(inputs: Iterable[str], outputs: Iterable[str], where: str = "") -> None:
    """DataError where a program would have no name for an input, or one for it and an output."""
    if taken := sorted({*inputs} & {"", LOGITS, *outputs}):
        raise DataError(
            f"{where}expected inputs that have names, and others than answers of the bag, "
            f"{', '.join([*outputs, LOGITS])}, got {taken[0]!r}; rename it, or leave it out"
        )


class ClassesProgram:
    """Of classification: probabilities, and how much the members disagree."""

    outputs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "probabilities": ("float64", "C"),
        "member_probabilities": ("float32", "KC"),
        "label": ("int64", ""),
        "entropy": ("float64", ""),
        "mutual_information": ("float64", ""),
        "member_labels": ("int64", "K"),
        "votes": ("int64", "C"),
    }
    """Type, and dimensions of an example: members, and classes or targets."""
    sent: ClassVar[Literal["FP32", "FP64"]] = "FP32"
    """In which numbers that are no whole ones are sent."""
    ranked: ClassVar[tuple[str, ...]] = ("probabilities", "votes")
    """Of which the best classes alone can be asked for."""
    known: ClassVar[tuple[str, ...]] = (
        *("stop_when_decided", "confidence", "member_labels"),
        *("coverage", "sets", "refuse_below"),
    )
    """What a question may ask for."""

    def program(self, rule: Rule, num_names: int) -> tuple[str, str, Outputs]:
        """What each says, what they say together, a line an operator, and their constants."""
        entropies = [
            _NEGATIVE_ENTROPY.format(of=of) for of in ("probs_BKC", "mean_B1C", "probabilities")
        ]
        plain = "probabilities = Identity (shares_BC)"
        together = (
            _CLASSES_TOGETHER.format(ballots="choices_BKC" if rule.counts_votes else "probs_BKC"),
            plain if rule.temperature == 1.0 else _SCALED,
            *entropies,
            _CLASSES_UNSURE,
        )
        constants = {
            "num_classes": np.array(num_names),
            "off_on": np.array([0.0, 1.0], np.float32),
            "zero": np.array(0.0),
            "least": np.array(SMALLEST_PROBABILITY),
            "temperature": np.array(rule.temperature),
        }
        return _CLASSES_SAID, "".join(together), _AXES | constants

    def units(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Of the numbers of an answer, ``(A,)``."""
        return np.ones(len(names))

    def member_answers(self, outputs: Outputs) -> NDArray[Any]:
        """Each member's answer by itself, ``(B, K, A)``."""
        return outputs["member_probabilities"]

    def bag_answers(self, outputs: Outputs) -> NDArray[Any]:
        """The bag's, ``(B, A)``."""
        return outputs["probabilities"]

    def predicted(self, outputs: Outputs, names: Sequence[str]) -> NDArray[Any]:
        """Classes: names, or numbers where all names are whole numbers."""
        known = np.array(names)
        if all(name.removeprefix("-").isdecimal() for name in names):
            known = known.astype(np.int64)
        found: NDArray[Any] = known[outputs["label"]]
        return found

    def columns(self, outputs: Outputs, names: Sequence[str]) -> dict[str, Any]:
        """Of a table of answers, a row an example."""
        return {
            "prediction": [names[label] for label in outputs["label"].tolist()],
            "probability": outputs["probabilities"].max(axis=1),
            "probabilities": outputs["probabilities"].tolist(),
        }

    def told(self, one: Outputs, names: Sequence[str]) -> dict[str, Any]:
        """The answer about one example; what is not sure enough has no label."""
        label = int(one["label"])
        said: dict[str, Any] = {
            "label": names[label] if label >= 0 else None,
            "probabilities": dict(zip(names, one["probabilities"].tolist(), strict=True)),
            "votes": dict(zip(names, one["votes"].tolist(), strict=True)),
        }
        if "set" in one:
            said["set"] = [name for name, inside in zip(names, one["set"], strict=True) if inside]
        return said | ({"refused": str(one["refused"])} if one.get("refused") else {})

    def line(self, one: Outputs, names: Sequence[str]) -> str:
        """The same in a few words."""
        label = int(one["label"])
        agree = f"{one['votes'][label]} of {one['members_used']} members agree"
        return f"{names[label]}  {one['probabilities'][label]:.1%}, {agree}"


class NumbersProgram:
    """Of regression: mean and standard deviation of the members' mixture, in targets' units."""

    if TYPE_CHECKING:  # they are the task's own
        variance: Literal["head", "fitted"]
        mean: tuple[float, ...]
        std: tuple[float, ...]

    outputs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "mean": ("float64", "C"),
        "std": ("float64", "C"),
        "member_means": ("float64", "KC"),
        "member_stds": ("float64", "KC"),
        "entropy": ("float64", ""),
        "mutual_information": ("float64", ""),
    }
    """As of ``ClassesProgram``. Both uncertainties are those of normals, means over targets."""
    sent: ClassVar[Literal["FP32", "FP64"]] = "FP64"
    ranked: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[tuple[str, ...]] = ("coverage", "sets")

    def program(self, rule: Rule, num_names: int) -> tuple[str, str, Outputs]:
        """What each says, what they say together, a line an operator, and their constants."""
        if rule.counts_votes:
            raise ConfigError("expected a vote that weighs numbers, got one that counts votes")
        unit = np.array(self.std)
        constants = {
            "unit": unit,
            "centre": np.array(self.mean),
            "low": np.array(LOG_VARIANCES[0]),
            "high": np.array(LOG_VARIANCES[1]),
            "half": np.array(0.5),
            "least": SMALLEST_VARIANCE * unit**2,
            "scale": np.array(rule.temperature),
            "normal": np.array(0.5 * math.log(2 * math.pi * math.e)),
        }
        said = _NUMBERS_SAID.format(head=_HEAD if self.variance == "head" else _NO_HEAD)
        return said, _NUMBERS_TOGETHER, _AXES | constants

    def units(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Of the numbers of an answer, ``(A,)``."""
        std = np.array(self.std)
        return np.concatenate([std, std**2])

    def member_answers(self, outputs: Outputs) -> NDArray[Any]:
        """Each member's answer by itself, ``(B, K, A)``."""
        return np.concatenate([outputs["member_means"], outputs["member_stds"] ** 2], axis=-1)

    def bag_answers(self, outputs: Outputs) -> NDArray[Any]:
        """The bag's, ``(B, A)``."""
        return np.concatenate([outputs["mean"], outputs["std"] ** 2], axis=-1)

    def predicted(self, outputs: Outputs, names: Sequence[str]) -> NDArray[Any]:
        """Means, ``(B,)`` of one target."""
        return one_target(outputs["mean"])

    def columns(self, outputs: Outputs, names: Sequence[str]) -> dict[str, Any]:
        """Of a table of answers, a row an example; lists of several targets."""
        means, stds = (one_target(outputs[name]).tolist() for name in ("mean", "std"))
        return {"prediction": means, "std": stds}

    def told(self, one: Outputs, names: Sequence[str]) -> dict[str, Any]:
        """The answer about one example, by target."""
        shown = {name: one[name] for name in ("mean", "std")}
        if "interval" in one:
            shown["interval"] = one["interval"].reshape(-1, 2)
        return {n: dict(zip(names, each.tolist(), strict=True)) for n, each in shown.items()}

    def line(self, one: Outputs, names: Sequence[str]) -> str:
        """The same in a few words."""
        told = zip(names, one["mean"], one["std"], strict=True)
        return ", ".join(f"{name} {mean:.6g} +- {std:.2g}" for name, mean, std in told)


def one_target(values: NDArray[Any]) -> NDArray[Any]:
    """Values ``(N, T, ...)``, of one target ``(N, ...)``: as scikit-learn has them."""
    return values[:, 0] if values.shape[1] == 1 else values
