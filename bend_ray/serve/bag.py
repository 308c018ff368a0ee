"""A loaded bag: its members in groups, each one ONNX Runtime session; and a student before it.

Where a network has no ONNX program its members answer in torch. Shape letters: E members,
B examples, N of a user's, C classes, T targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray

from bend_ray.ensemble.programs import LOGITS, Outputs, one_target
from bend_ray.ensemble.votes import Rule
from bend_ray.errors import BendError, ConfigError, DataError
from bend_ray.export import files, graphs
from bend_ray.export.card import TOLERANCE, Card, noise, read_card
from bend_ray.export.graphs import WEIGHTS, Ask, Form, State, Way, fastest, ways
from bend_ray.serve.queries import Answers, Inputs, given_inputs
from bend_ray.serve.settings import ServeSettings, Stop
from bend_ray.storage.masking import cause, masked

SMALL_BYTES = 64 * 2**20
"""Bags up to this size are held twice: in groups, and as one."""
QUICK_SECONDS = 0.002
"""In which a batch is computed while nobody else is served: to ask another thread takes as long
as a small bag."""
MOST_AT_ONCE = 2**21
"""Numbers of the examples that are answered together, for who asks about many."""
_ALONE = ServeSettings(groups=1)
_SLACK = 1e-5
"""More than sums of softmaxes in float32 can be off, as a share of the whole vote."""

Truths = NDArray[np.bool_]


class Uncertainty(NamedTuple):
    """How sure a bag is about N examples."""

    entropy: NDArray[np.float64]
    """Of what the bag predicts ``(N,)``, in nats, after its temperature: all uncertainty."""
    mutual_information: NDArray[np.float64]
    """Of that and member ``(N,)``, in nats, before it: how much the members disagree."""
    votes: NDArray[np.int64] | None
    """How many members chose each class, ``(N, C)``; None of numbers."""


class Bag:
    """An exported bag that answers, from one thread at a time.

    What predicts takes what the network was trained on: an array or tensor with N examples, a
    frame, or several inputs by name. It raises a DataError where it takes no such examples, and a
    ConfigError where the task gives no such answer.

    Attributes:
        way: how its members are run; None: in torch.
        groups: of its members, which are asked together for what each says, for questions that
            may end before the last is asked.
        whole: inputs to the bag's answers; None where memory is dearer than a few calls.
        is_quick: whether a batch may be computed while nobody else is served.
    """

    def __init__(
        self,
        uri: str,
        card: Card,
        way: Way | None,
        groups: Sequence[tuple[slice, Ask]] = (),
        whole: Ask | None = None,
    ) -> None:
        self.uri, self.card, self.way, self.whole = uri, card, way, whole
        self.groups, self.is_quick = tuple(groups), False
        self._count = Way("unrolled", 1).ready(graphs.count_program(card, of_logits=False))

    def __repr__(self) -> str:
        return f"<Bag {self.card.model_version}: {len(self.card.members)} members>"

    @classmethod
    def load(cls, uri: str | Path, settings: ServeSettings = _ALONE) -> Bag:
        """Read an exported bag, a folder or URI, choose how to run it, and run it once.

        Of the settings it heeds groups, CPUs, the batch size, and whether to run the owner's code.
        StoreError where it cannot be read, DataError where it is no bag, or its files do not agree.
        """
        with files.fetched(str(uri)) as folder:
            card = read_card(folder)
            try:
                files.check_files(folder, card)
                state_K: State = _read(folder, files.MEMBERS, safetensors.numpy.load_file)
                make = cls._in_onnx if files.MEMBER_ONNX in card.files else cls._in_torch
                bag = make(folder, card, state_K, settings)
                bag.uri = str(uri)
                bag._check(bag.answer(noise(card), [Stop()] * 2))
                if bag.groups:
                    bag._check(bag.answer_in_groups(noise(card), [Stop()] * 2))
                if card.warmup and bag.way is not None and bag.way.threads == 1:
                    batch = settings.max_batch_size
                    examples, started = noise(card, batch), time.thread_time()
                    bag.answer(examples, [Stop()] * batch)
                    bag.is_quick = time.thread_time() - started < QUICK_SECONDS
            except BendError:
                raise
            # A damaged graph, or a card that is another bag's: whatever onnxruntime makes of it.
            except Exception as error:
                raise _broken(folder, f"{type(error).__name__}: {cause(error)}") from None
        return bag

    @classmethod
    def _in_onnx(cls, folder: Path, card: Card, state_K: State, settings: ServeSettings) -> Bag:
        member = _read_member(folder, card, state_K)

        def part(rows: slice, form: Form) -> onnx.ModelProto:
            own = {name: tensor[rows] for name, tensor in state_K.items()}
            return graphs.members_program(card, member, own, form)

        count = len(card.members)
        split = np.array_split(np.arange(count), min(settings.groups, count))
        parts = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in split]
        tried = ways(graphs.forms(member), max(1, int(settings.cpus)))
        way = fastest(tried, lambda form: part(parts[0], form), card, settings.max_batch_size)
        loaded, whole = [], None
        if len(parts) > 1:
            loaded = [(rows, way.ready(part(rows, way.form))) for rows in parts]
        if not loaded or sum(tensor.nbytes for tensor in state_K.values()) <= SMALL_BYTES:
            whole = way.ready(graphs.bag_program(card, member, state_K, way.form))
        return cls(str(folder), card, way, loaded, whole)

    @classmethod
    def _in_torch(cls, folder: Path, card: Card, state_K: State, settings: ServeSettings) -> Bag:
        if card.architecture.kind == "imported" and not settings.run_code:
            raise DataError(
                f"{folder}: expected {files.MEMBER_ONNX}, which this network has not: its members "
                f"answer by code of its owner's, {card.architecture.target}; if you trust that, "
                "load it with run_code=True, or serve it with --option run_code=true"
            )
        from bend_ray.export.members import Members

        members = Members(card, state_K)
        count = Way("unrolled", 1).ready(graphs.count_program(card, of_logits=True))
        weights = np.array([[card.rule.sums_exactly]])

        def whole(inputs: Outputs) -> Outputs:
            return count({LOGITS: members.logits(inputs).numpy(), WEIGHTS: weights})

        return cls(str(folder), card, None, (), whole)

    def _check(self, said: Answers) -> None:
        """Refuse to answer otherwise than torch did when the bag was exported."""
        if not self.card.warmup:
            return
        each_BEA = self.card.task.member_answers(said)
        mean_BA = np.einsum("e,bea->ba", self.card.weights, each_BEA)
        off = self.card.differs(mean_BA, np.array(self.card.warmup))
        if not is_finite(said).all() or not off <= TOLERANCE:
            told = f"off by {off:.1g}, or not finite"
            raise _broken(self.uri, f"answers about the examples of the card that are {told}")

    def answer(self, inputs: Inputs, stops: Sequence[Stop]) -> Answers:
        """What the bag says about examples; ``stops``: when each of them needs no more members."""
        patient = all(stop.is_patient for stop in stops)
        if self.whole is None or not (patient or not self.groups):
            return self.answer_in_groups(inputs, stops)
        return {**self.whole(inputs), "members_used": np.full(len(stops), len(self.card.members))}

    def unasked(self, examples: int) -> Answers:
        """What of members is told that were not asked."""
        told = {name: self.card.outputs[name] for name in graphs.members_outputs(self.card)}
        return {
            name: np.full((examples, *shape), -1 if dtype == "int64" else 0, dtype)
            for name, (dtype, shape) in told.items()
        }

    def answer_in_groups(self, inputs: Inputs, stops: Sequence[Stop]) -> Answers:
        """The same, group after group."""
        card, examples = self.card, len(stops)
        said = self.unasked(examples)
        asked_BE = np.zeros((examples, len(card.members)), np.bool_)
        rows_B = np.arange(examples)
        patient = all(stop.is_patient for stop in stops)
        for place, (members, ask) in enumerate(self.groups, start=1):
            part = {name: values[rows_B] for name, values in inputs.items()}
            for name, values in ask(part).items():
                said[name][rows_B, members] = values
            asked_BE[rows_B, members] = True
            if patient and place < len(self.groups):
                continue
            weights_B1E = np.where(asked_BE, card.rule.sums_exactly, 0.0)[:, None]
            answers = {**said, **self._count({**said, WEIGHTS: weights_B1E})}
            if patient:
                break
            rows_B = np.flatnonzero(~finished(card.rule, answers, asked_BE, stops))
            if not len(rows_B):
                break
        return {**answers, "members_used": asked_BE.sum(axis=1)}

    def predict(self, x: Any, return_std: bool = False) -> Any:
        """Classes ``(N,)``, or means of targets, ``(N,)`` of one and ``(N, T)`` of several.

        Classes are names, or numbers where all names are whole numbers. With ``return_std`` means
        and their standard deviations.
        """
        wanted = ("std",) if return_std else ()
        said = self._answers(x, *wanted)
        found = self.card.task.predicted(said, self.card.class_names)
        return (found, one_target(said["std"])) if return_std else found

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """The bag's probabilities ``(N, C)``, in the order of ``card.class_names``."""
        return self._answers(x, "probabilities")["probabilities"]

    def predict_set(
        self, x: Any, coverage: float = 0.9, kind: str | None = None
    ) -> NDArray[np.bool_]:
        """Sets of classes ``(N, C)``, each with the most probable one.

        A share of ``coverage`` of them holds the truth, of examples like those kept back; kinds are
        those of ``ensemble.conformal.nonconformity``. ConfigError where no examples were kept back
        (``dataset.num_calibration``), or too few for the coverage.
        """
        return self._promised("set", x, coverage, kind)

    def predict_interval(
        self, x: Any, coverage: float = 0.9, kind: str | None = None
    ) -> NDArray[np.float64]:
        """Lower and upper ends, ``(N, 2)`` of one target and ``(N, T, 2)`` of several.

        As of ``predict_set``; ``kind`` is one of ``ensemble.conformal.IntervalCalibration``.
        """
        return self._promised("interval", x, coverage, kind)

    def uncertainty(self, x: Any) -> Uncertainty:
        """Entropy, mutual information and votes."""
        said = self._answers(x)
        return Uncertainty(said["entropy"], said["mutual_information"], said.get("votes"))

    def save(self, folder: str | Path) -> str:
        """Copy the bag to a folder or URI, from where ``load_bag`` reads it; returns that.

        ConfigError where something else is in the folder, StoreError where it cannot be written.
        """
        files.refuse_strangers(str(folder))
        with files.fetched(self.uri, files.OURS) as own:
            files.publish(own, str(folder))
        return str(folder)

    def _promised(self, what: str, x: Any, coverage: float, kind: str | None) -> NDArray[Any]:
        promises = self.card.promises
        if promises.promised != what:
            raise ConfigError(
                f"predict_{what}: expected a bag that gives it, got a {self.card.task.kind}; use "
                f"predict_{promises.promised}"
            )
        promises.check(coverage, kind)
        answers_NA = self.card.task.bag_answers(self._answers(x))
        found: NDArray[Any] = promises.sets(answers_NA, coverage, kind)
        return found

    def _answers(self, x: Any, *wanted: str) -> Answers:
        if lacking := set(wanted) - set(self.card.task.outputs):
            raise ConfigError(
                f"expected of a {self.card.task.kind} one of {', '.join(self.card.task.outputs)}, "
                f"got {', '.join(lacking)}"
            )
        inputs = given_inputs(x, self.card)
        count = len(next(iter(inputs.values())))
        size = max(1, min(4096, MOST_AT_ONCE // max(1, self.card.numbers)))
        parts: list[Answers] = []
        for start in range(0, max(1, count), size):
            rows = {name: values[start : start + size] for name, values in inputs.items()}
            said = self.answer(rows, [Stop()] * len(next(iter(rows.values()))))
            parts.append({n: v for n, v in said.items() if not n.startswith("member")})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Cascade(Bag):
    """A bag whose student is asked first, and the bag where that is unsure.

    Where the student answers no member is asked: ``member_labels`` are -1 then, and no member used.
    The student is what ``bend distill`` made of the bag, which is asked where the student's label
    has a probability ``below`` that.
    """

    def __init__(self, student: Bag, bag: Bag, below: float) -> None:
        theirs, own = student.card, bag.card
        if not own.task.has_classes:
            raise DataError(f"student: expected a bag of classes, got one of a {own.task.kind}")
        if (theirs.takes, theirs.class_names) != (own.takes, own.class_names):
            raise DataError(
                f"{masked(student.uri)}: expected a student of bag {own.model_version}, got one of "
                f"other inputs or classes, {theirs.model_version}"
            )
        super().__init__(bag.uri, own, bag.way, bag.groups, bag.whole)
        self.student, self.below = student, below
        self.is_quick = bag.is_quick and student.is_quick

    def answer(self, inputs: Inputs, stops: Sequence[Stop]) -> Answers:
        """What the student says, or the bag."""
        first = self.student.answer(inputs, [Stop()] * len(stops))
        everyone_B = np.array([stop.everyone for stop in stops], dtype=bool)
        rows_B = np.flatnonzero((first["probabilities"].max(axis=1) < self.below) | everyone_B)
        found = {name: values.copy() for name, values in first.items()}
        # The student is no member.
        found |= self.unasked(len(stops)) | {n: 0 * first[n] for n in ("votes", "members_used")}
        if len(rows_B):
            asked = {name: values[rows_B] for name, values in inputs.items()}
            said = super().answer(asked, [stops[row] for row in rows_B.tolist()])
            for name, values in said.items():
                found[name][rows_B] = values
        return found


def finished(rule: Rule, said: Outputs, asked_BE: Truths, stops: Sequence[Stop]) -> Truths:
    """Examples about which nobody else need be asked."""
    wanted_B = np.array([stop.decided for stop in stops])
    least_B = np.array([np.inf if s.confidence is None else s.confidence for s in stops])
    sure_B = said["probabilities"].max(axis=1) >= least_B
    ended_B: Truths = (wanted_B & decided(rule, said, asked_BE)) | sure_B
    return ended_B


def decided(rule: Rule, said: Outputs, asked_BE: Truths) -> Truths:
    """Examples whose label the members left cannot change, whatever they say.

    The most a class can still gain on the leader is the weight of all of them. Where votes are
    counted this is exact, ties included; where probabilities are averaged a sliver of the vote is
    left for rounding.
    """
    weights_BE = np.where(asked_BE, rule.sums_exactly, 0.0)
    ballots_BEC, classes_C = said["member_probabilities"], np.arange(said["votes"].shape[1])
    if rule.counts_votes:
        ballots_BEC = said["member_labels"][:, :, None] == classes_C
    mass_BC = np.einsum("be,bec->bc", weights_BE, ballots_BEC)
    total = sum(rule.sums_exactly)
    left_B1 = total - weights_BE.sum(axis=1, keepdims=True)
    leader_B1 = said["label"][:, None]
    lead_BC = np.take_along_axis(mass_BC, leader_B1, axis=1) - mass_BC
    if rule.counts_votes:
        safe_BC = (lead_BC > left_B1) | ((lead_BC == left_B1) & (leader_B1 < classes_C))
    else:
        safe_BC = lead_BC > left_B1 + _SLACK * total
    settled_B: Truths = (safe_BC | (classes_C == leader_B1)).all(axis=1) | asked_BE.all(axis=1)
    return settled_B


def is_finite(said: Answers) -> NDArray[np.bool_]:
    """Whether the answer about each example is one, ``(B,)``."""
    of_each = [
        np.isfinite(values).reshape(len(values), -1).all(axis=1)
        for values in said.values()
        if values.dtype.kind == "f"
    ]
    finite_B: NDArray[np.bool_] = np.all(of_each, axis=0)
    return finite_B


def _read(folder: Path, name: str, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(str(folder / name))
    except Exception as error:  # of safetensors, onnx, protobuf, whose own has no public home
        raise _broken(folder, f"{name}: {type(error).__name__}: {cause(error)}") from None


def _read_member(folder: Path, card: Card, state_K: State) -> onnx.ModelProto:
    member: onnx.ModelProto = _read(folder, files.MEMBER_ONNX, onnx.load_model)
    for given in member.graph.input[len(card.network_inputs) :]:
        shape = (len(card.members), *(dim.dim_value for dim in given.type.tensor_type.shape.dim))
        got = state_K[given.name].shape if given.name in state_K else None
        if got != shape:
            raise _broken(
                folder, f"{files.MEMBERS}: expected {given.name} of shape {shape}, got {got}"
            )
    return member


def _broken(where: str | Path, problem: str) -> DataError:
    return DataError(
        f"{masked(str(where))}: expected a bag written by `bend export`, got: {problem}; "
        "export it again"
    )
