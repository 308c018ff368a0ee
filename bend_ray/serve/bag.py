"""A loaded bag: its members in groups, each group one ONNX Runtime session.

Where a network has no ONNX program its members answer in torch. Shape letters: E members,
B examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from bend_ray.ensemble import conformal
from bend_ray.errors import BendError, DataError
from bend_ray.export.card import TOLERANCE, Card, noise, read_card
from bend_ray.export.files import MEMBER_ONNX, MEMBERS, check_files, publish, refuse_strangers
from bend_ray.export.graphs import Form, State, bag_program, forms
from bend_ray.serve.executor import Way, ask, fastest, ways
from bend_ray.serve.queries import Inputs, given_inputs
from bend_ray.serve.voting import Answers, Softmaxes, Stop, counted, finished
from bend_ray.storage.masking import cause

SMALL_BYTES = 64 * 2**20
"""Bags up to this size are held twice: in groups, and as one."""
QUICK_SECONDS = 0.002
"""In which a batch is computed while nobody else is served: to ask another thread takes as long
as a small bag."""
MOST_AT_ONCE = 2**21
"""Numbers of the examples that are answered together, for who asks about many."""


@dataclass(frozen=True)
class Group:
    """Members that are asked together, for their softmaxes ``(B, E, C)``."""

    members: slice
    ask: Callable[[Inputs], Softmaxes]


class Uncertainty(NamedTuple):
    """How sure a bag is about N examples."""

    entropy: NDArray[np.float64]
    """Of the bag's probabilities ``(N,)``, in nats, after its temperature: all uncertainty."""
    mutual_information: NDArray[np.float64]
    """Of label and member ``(N,)``, in nats, before it: how much the members disagree."""
    votes: NDArray[np.int64]
    """How many members chose each class, ``(N, C)``."""


class Bag:
    """An exported bag that answers, from one thread at a time.

    ``predict``, ``predict_proba`` and ``uncertainty`` take what the network was trained on: an
    array or tensor with N examples, a frame, or several inputs by name; DataError where it takes no
    such examples.

    Attributes:
        card: what it is.
        way: how its members are run; None: in torch.
        groups: of its members, for questions that may end before the last is asked.
        whole: inputs to the bag's answers; None where memory is dearer than a few calls.
        is_quick: whether a batch may be computed while nobody else is served.
    """

    def __init__(
        self,
        folder: Path,
        card: Card,
        way: Way | None,
        groups: Sequence[Group] = (),
        whole: onnxruntime.InferenceSession | None = None,
    ) -> None:
        self.folder, self.card, self.way, self.whole = folder, card, way, whole
        self.groups, self.is_quick = tuple(groups), False

    def __repr__(self) -> str:
        return f"<Bag {self.card.model_version}: {len(self.card.members)} members>"

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        groups: int = 1,
        threads: int = 1,
        batch: int = 32,
        run_code: bool = False,
    ) -> Bag:
        """Read an exported bag, choose how to run it, and run it once.

        Args:
            folder: written by ``bend export``.
            groups: in how many steps the members may be asked.
            threads: for computing.
            batch: the largest batch that will be asked about.
            run_code: where the bag has no ONNX program, run the user's code that its card names.

        Raises:
            DataError: it is no such folder, or its files do not agree.
        """
        card = read_card(folder)
        try:
            check_files(folder, card)
            state_K = _read(folder)
            if MEMBER_ONNX in card.files:
                bag = cls._in_onnx(folder, card, state_K, groups, threads, batch)
            else:
                bag = cls._in_torch(folder, card, state_K, run_code)
            for stop in (Stop(), Stop(confidence=2.0)):  # all members at once, and in groups
                bag._check(stop)
            bag._measure(batch)
        except BendError:
            raise
        # A damaged graph, or a card that is another bag's: whatever onnxruntime makes of it.
        except Exception as error:
            raise _broken(folder, f"{type(error).__name__}: {cause(error)}") from None
        return bag

    @classmethod
    def _in_onnx(
        cls, folder: Path, card: Card, state_K: State, groups: int, threads: int, batch: int
    ) -> Bag:
        member, weights_K = _read_member(folder, card, state_K), card.rule.sums_exactly

        def graph(rows: slice, form: Form) -> onnx.ModelProto:
            part = {name: tensor[rows] for name, tensor in state_K.items()}
            return bag_program(card, member, part, weights_K[rows], form)

        count = len(card.members)
        split = np.array_split(np.arange(count), min(groups, count))
        parts = [slice(int(part[0]), int(part[-1]) + 1) for part in split]
        way = fastest(ways(forms(member), threads), lambda form: graph(parts[0], form), card, batch)
        loaded, whole = [], None
        if len(parts) > 1:
            for rows in parts:
                session = way.session(graph(rows, way.form))
                loaded.append(Group(rows, partial(_softmaxes, session)))
        if not loaded or sum(tensor.nbytes for tensor in state_K.values()) <= SMALL_BYTES:
            whole = way.session(graph(slice(None), way.form))
        return cls(folder, card, way, loaded, whole)

    @classmethod
    def _in_torch(cls, folder: Path, card: Card, state_K: State, run_code: bool) -> Bag:
        if card.architecture.kind == "imported" and not run_code:
            raise DataError(
                f"{folder}: expected {MEMBER_ONNX}, which this network has not: its members answer "
                f"by code of its owner's, {card.architecture.target}; if you trust that, load it "
                "with run_code=True, or serve it with --option run_code=true"
            )
        from bend_ray.export.members import Members

        members = Members(card, state_K)
        return cls(folder, card, None, [Group(slice(None), members.softmaxes)])

    def _check(self, stop: Stop) -> None:
        """Refuse to answer otherwise than torch did when the bag was exported."""
        if not self.card.warmup:
            return
        answers = self.answer(noise(self.card), [stop] * 2)
        mean_BC = np.einsum("e,bec->bc", self.card.weights, answers.member_probs_BEC)
        off_BC = np.abs(mean_BC - self.card.warmup)
        if not answers.is_finite.all() or not off_BC.max() <= TOLERANCE:
            told = f"off by {off_BC.max():.1g}, or not finite"
            raise _broken(self.folder, f"answers about the examples of the card that are {told}")

    def _measure(self, batch: int) -> None:
        examples, stops, started = noise(self.card, batch), [Stop()] * batch, time.thread_time()
        if self.card.warmup and self.way is not None and self.way.threads == 1:
            self.answer(examples, stops)
            self.is_quick = time.thread_time() - started < QUICK_SECONDS

    def answer(self, inputs: Inputs, stops: Sequence[Stop]) -> Answers:
        """What the bag says about examples.

        Args:
            inputs: as the card has them, by name.
            stops: when each of the examples needs no more members.
        """
        patient = not any(stop.decided or stop.confidence is not None for stop in stops)
        if self.whole is not None and (patient or not self.groups):
            return ask(self.whole, inputs)
        rule, (examples, members) = self.card.rule, (len(stops), len(self.card.members))
        probs_BEC = np.zeros((examples, members, len(self.card.class_names)), np.float32)
        asked_BE = np.zeros((examples, members), np.bool_)
        rows_B = np.arange(examples)
        for group in self.groups:
            asked = {name: values[rows_B] for name, values in inputs.items()}
            probs_BEC[rows_B, group.members] = group.ask(asked)
            asked_BE[rows_B, group.members] = True
            if patient and group is not self.groups[-1]:
                continue
            answers = counted(rule, probs_BEC, asked_BE)
            rows_B = np.flatnonzero(~finished(rule, answers, asked_BE, stops))
            if not len(rows_B):
                break
        return answers

    def predict(self, x: Any) -> NDArray[Any]:
        """The classes ``(N,)`` of examples: names, or numbers where all names are whole numbers."""
        names = np.array(self.card.class_names)
        if all(name.removeprefix("-").isdecimal() for name in self.card.class_names):
            names = names.astype(np.int64)
        predicted: NDArray[Any] = names[self.predict_proba(x).argmax(axis=1)]
        return predicted

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """The bag's probabilities ``(N, C)``, in the order of ``card.class_names``."""
        return np.concatenate([said.probs_BC for said in self._answers(x)])

    def predict_set(
        self, x: Any, coverage: float = 0.9, kind: conformal.Kind = "thr"
    ) -> NDArray[np.bool_]:
        """Sets of classes ``(N, C)``, each with the most probable one.

        Args:
            x: examples.
            coverage: share of such sets that hold the truth, of examples like those kept back.
            kind: as ``ensemble.conformal.nonconformity`` has them.

        Raises:
            ConfigError: no examples were kept back (``dataset.num_calibration``).
        """
        return self.card.promises.sets(self.predict_proba(x), coverage, kind)

    def uncertainty(self, x: Any) -> Uncertainty:
        """Entropy, mutual information and votes."""
        said = self._answers(x)
        return Uncertainty(
            np.concatenate([each.entropy_B for each in said]),
            np.concatenate([each.information_B for each in said]),
            np.concatenate([each.votes for each in said]),
        )

    def save(self, folder: str | Path) -> str:
        """Copy the bag to a folder or URI, from where ``load_bag`` reads it; returns that.

        Raises:
            ConfigError: something else is in the folder.
            StoreError: it cannot be written.
        """
        refuse_strangers(str(folder))
        publish(self.folder, str(folder))
        return str(folder)

    def _answers(self, x: Any) -> list[Answers]:
        inputs = given_inputs(x, self.card)
        count = len(next(iter(inputs.values())))
        size = max(1, min(4096, MOST_AT_ONCE // max(1, self.card.numbers)))
        parts: list[Answers] = []
        for start in range(0, max(1, count), size):
            rows = {name: values[start : start + size] for name, values in inputs.items()}
            parts.append(self.answer(rows, [Stop()] * len(next(iter(rows.values())))))
        return parts


def _softmaxes(session: onnxruntime.InferenceSession, inputs: Inputs) -> Softmaxes:
    return ask(session, inputs).member_probs_BEC


def _read(folder: Path) -> State:
    try:
        return safetensors.numpy.load_file(folder / MEMBERS)
    except (OSError, SafetensorError) as error:
        raise _broken(folder, str(error).partition("\n")[0]) from None


def _read_member(folder: Path, card: Card, state_K: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    try:
        member = onnx.load_model(str(folder / MEMBER_ONNX))
    except (OSError, onnx.checker.ValidationError) as error:
        raise _broken(folder, str(error).partition("\n")[0]) from None
    except Exception as error:  # protobuf's own error has no public home
        raise _broken(folder, f"{MEMBER_ONNX}: {type(error).__name__}") from None
    for given in member.graph.input[len(card.network_inputs) :]:
        shape = (len(card.members), *(dim.dim_value for dim in given.type.tensor_type.shape.dim))
        got = state_K[given.name].shape if given.name in state_K else None
        if got != shape:
            raise _broken(folder, f"{MEMBERS}: expected {given.name} of shape {shape}, got {got}")
    return member


def _broken(folder: Path, problem: str) -> DataError:
    return DataError(
        f"{folder}: expected a bag written by `bend export`, got: {problem}; export it again"
    )
