"""What the program of an exported bag computes of a task, and how its outputs are told.

In ONNX's operators and in numpy, as who serves has no torch. A program has two parts: what each
member says, of ``logits`` ``(K, B, O)``, and what they say together, of that and of ``weights``
``(B, 1, K)``, which are 0 of a member that was not asked.

Shape letters: K members, B examples, O outputs of a network, C classes, T targets, A numbers of an
answer: probabilities, or means and then variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY, SMALLEST_VARIANCE
from bend_ray.ensemble.votes import Rule
from bend_ray.errors import ConfigError

Outputs = Mapping[str, NDArray[Any]]
"""Of a program, by name, each with the examples as its first dimension."""

LOGITS = "logits"
"""What a member's network answers."""
LOG_VARIANCES = (-12.0, 6.0)
"""Within which a head's are taken, of standardised targets: beyond, the loss has no floor."""
_DOUBLE, _INT64 = 11, 7
"""Types, as ONNX numbers them."""
_AXES = {"last": np.array([-1]), "middle": np.array([1]), "both": np.array([1, 2])}


def check_names(inputs: Iterable[str], outputs: Iterable[str], where: str = "") -> None:
    """ConfigError where a program would have no name for an input, or one for it and an output."""
    for name in {"", LOGITS, *outputs} & {*inputs}:
        raise ConfigError(
            f"{where}{name or 'one without a name'}: expected inputs that are called otherwise "
            f"than answers, {', '.join([*outputs, LOGITS])}; rename it, or leave it out"
        )


class Operators(Protocol):
    """Writes a program: ``op.Div(a, b, name=...)`` is an operator's value, called so if it matters.

    Of one with several outputs it gives them all.
    """

    def __getattr__(self, operator: str) -> Callable[..., Any]: ...


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

    def constants(self, rule: Rule, num_names: int) -> Outputs:
        """That a program may read, by name."""
        return _AXES | {
            "num_classes": np.array(num_names),
            "off_on": np.array([0.0, 1.0], np.float32),
            "zero": np.array(0.0),
            "least": np.array(SMALLEST_PROBABILITY),
            "temperature": np.array(rule.temperature),
        }

    def say(self, op: Operators) -> None:
        """What each says."""
        logits_BKC = op.Transpose("logits", perm=[1, 0, 2])
        op.Softmax(logits_BKC, axis=-1, name="member_probabilities")
        op.ArgMax(logits_BKC, axis=-1, keepdims=0, name="member_labels")

    def answer(self, op: Operators, rule: Rule) -> None:
        """What they say together."""
        probs_BKC = op.Cast("member_probabilities", to=_DOUBLE)
        one_hot_BKC = op.OneHot("member_labels", "num_classes", "off_on", axis=-1)
        choices_BKC = op.Cast(one_hot_BKC, to=_DOUBLE)
        asked_B1K = op.Cast(op.Greater("weights", "zero"), to=_DOUBLE)
        chosen_BC = op.Squeeze(op.MatMul(asked_B1K, choices_BKC), "middle")
        op.Cast(chosen_BC, to=_INT64, name="votes")
        total_B11 = op.ReduceSum("weights", "last")
        mean_B1C = op.Div(op.MatMul("weights", probs_BKC), total_B11)
        ballots_BKC = choices_BKC if rule.counts_votes else probs_BKC
        shares_B1C = op.Div(op.MatMul("weights", ballots_BKC), total_B11)
        op.Squeeze(op.ArgMax(shares_B1C, axis=-1, keepdims=0), "middle", name="label")
        shares_BC = op.Squeeze(shares_B1C, "middle")
        if rule.temperature == 1.0:
            op.Identity(shares_BC, name="probabilities")
        else:
            cooled_BC = op.Div(op.Log(op.Max(shares_BC, "least")), "temperature")
            op.Softmax(cooled_BC, axis=-1, name="probabilities")

        def minus_entropy(probs: str) -> str:
            logs = op.Log(op.Max(probs, "least"))
            found: str = op.ReduceSum(op.Mul(probs, logs), "last")
            return found

        own_B11 = op.Div(op.MatMul("weights", minus_entropy(probs_BKC)), total_B11)
        gain_B = op.Squeeze(op.Sub(own_B11, minus_entropy(mean_B1C)), "both")
        op.Relu(gain_B, name="mutual_information")
        op.Relu(op.Neg(op.Squeeze(minus_entropy("probabilities"), "middle")), name="entropy")

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

    def constants(self, rule: Rule, num_names: int) -> Outputs:
        """That a program may read, by name."""
        if rule.counts_votes:
            raise ConfigError("expected a vote that weighs numbers, got one that counts votes")
        unit = np.array(self.std)
        return _AXES | {
            "unit": unit,
            "centre": np.array(self.mean),
            "low": np.array(LOG_VARIANCES[0]),
            "high": np.array(LOG_VARIANCES[1]),
            "half": np.array(0.5),
            "least": SMALLEST_VARIANCE * unit**2,
            "scale": np.array(rule.temperature),
            "normal": np.array(0.5 * math.log(2 * math.pi * math.e)),
        }

    def say(self, op: Operators) -> None:
        """What each says."""
        outputs_BKO = op.Cast(op.Transpose("logits", perm=[1, 0, 2]), to=_DOUBLE)
        if self.variance == "head":
            mean_BKT, log_BKT = op.Split(outputs_BKO, axis=-1, num_outputs=2)
        else:
            mean_BKT, log_BKT = outputs_BKO, op.Sub(outputs_BKO, outputs_BKO)
        op.Add(op.Mul(mean_BKT, "unit"), "centre", name="member_means")
        root_BKT = op.Exp(op.Mul(op.Clip(log_BKT, "low", "high"), "half"))
        op.Mul(root_BKT, "unit", name="member_stds")

    def answer(self, op: Operators, rule: Rule) -> None:
        """What they say together."""
        total_B11 = op.ReduceSum("weights", "last")

        def mean_of(each: str) -> str:
            mean: str = op.Div(op.MatMul("weights", each), total_B11)
            return mean

        mean_B1T = mean_of("member_means")
        off_BKT = op.Sub("member_means", mean_B1T)
        own_BKT = op.Mul("member_stds", "member_stds")
        mixed_B1T = op.Max(mean_of(op.Add(op.Mul(off_BKT, off_BKT), own_BKT)), "least")
        variance_B1T = op.Mul(mixed_B1T, "scale")
        op.Squeeze(mean_B1T, "middle", name="mean")
        op.Squeeze(op.Sqrt(variance_B1T), "middle", name="std")
        log_mean_B = op.ReduceMean(op.Log(variance_B1T), "both", keepdims=0)
        op.Add(op.Mul(log_mean_B, "half"), "normal", name="entropy")
        own_B11 = mean_of(op.ReduceMean(op.Log(op.Max(own_BKT, "least")), "last"))
        gain_B11 = op.Sub(op.ReduceMean(op.Log(mixed_B1T), "last"), own_B11)
        op.Relu(op.Squeeze(op.Mul(gain_B11, "half"), "both"), name="mutual_information")

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
