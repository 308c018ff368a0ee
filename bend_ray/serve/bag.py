"""A loaded bag: its members in groups, each group one ONNX Runtime session.

Shape letters: K members, B images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from bend_ray.errors import BendError, DataError
from bend_ray.export.card import (
    MEMBER_ONNX,
    MEMBERS,
    Card,
    check_files,
    read_card,
    warmup_images,
)
from bend_ray.export.graphs import Form, State, answers_program, ballots_program, forms
from bend_ray.serve.executor import Way, ask, ask_everyone, fastest, ways
from bend_ray.serve.voting import Answers, Stop, Tally
from bend_ray.storage.masking import cause

SMALL_BYTES = 64 * 2**20
"""Bags up to this size are held twice: in groups, and as one."""


TOLERANCE = 1e-5
"""Of a probability, where torch and ONNX Runtime add up in different orders."""


@dataclass(frozen=True)
class Group:
    """Members that are asked together.

    Attributes:
        first: the first of them in voting order.
        session: pixels to their ballots.
    """

    first: int
    session: onnxruntime.InferenceSession


class Bag:
    """An exported bag that answers; ``answer`` may be called from one thread at a time.

    Args:
        card: what it is.
        way: how its members are run.
        groups: of its members, in voting order, for questions that may end before the last; none
            where everybody is asked anyway.
        whole: pixels to the bag's answers, for questions that ask everybody; None where memory is
            dearer than a few calls.
    """

    def __init__(
        self,
        card: Card,
        way: Way,
        groups: Sequence[Group] = (),
        whole: onnxruntime.InferenceSession | None = None,
    ) -> None:
        self.card = card
        self.way = way
        self.groups = tuple(groups)
        self.whole = whole
        self.rule = card.rule

    @classmethod
    def load(cls, folder: Path, *, groups: int = 4, threads: int = 1, batch: int = 32) -> Bag:
        """Read an exported bag, choose how to run it, and run it once.

        Args:
            folder: written by ``bend export``, with its ONNX format.
            groups: in how many steps the members may be asked.
            threads: for computing.
            batch: the largest batch that will be asked about.

        Raises:
            DataError: it is no such folder, or its files do not agree.
        """
        card = read_card(folder)
        try:
            check_files(folder, card)
            return cls._loaded(folder, card, groups, threads, batch)
        except BendError:
            raise
        # A damaged graph, or a card that is another bag's: whatever onnxruntime makes of it.
        except Exception as error:
            raise _broken(folder, f"{type(error).__name__}: {cause(error)}") from None

    @classmethod
    def _loaded(cls, folder: Path, card: Card, groups: int, threads: int, batch: int) -> Bag:
        state_K, member = _read(folder, card)
        weights_K = card.rule.sums_exactly

        def graph(rows: slice, form: Form) -> onnx.ModelProto:
            part = {name: tensor[rows] for name, tensor in state_K.items()}
            return ballots_program(card, member, part, weights_K[rows], form)

        sizes = _sizes(len(card.members), groups)
        pixels = np.zeros((batch, *card.image_shape), dtype=np.uint8)
        way = fastest(
            ways(forms(member), threads), lambda form: graph(slice(sizes[0]), form), pixels
        )
        loaded, whole = [], None
        if len(sizes) > 1:
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            loaded = [
                Group(first, way.session(graph(slice(first, first + size), way.form)))
                for first, size in zip(starts, sizes, strict=True)
            ]
        if not loaded or sum(tensor.nbytes for tensor in state_K.values()) <= SMALL_BYTES:
            whole = way.session(answers_program(card, member, state_K, weights_K, way.form))
        bag = cls(card, way, loaded, whole)
        bag.answer(pixels, [Stop()] * batch)
        for stop in (Stop(), Stop(confidence=2.0)):  # all members at once, and group after group
            bag._check(folder, stop)
        return bag

    def _check(self, folder: Path, stop: Stop) -> None:
        """Refuse to answer otherwise than torch did when the bag was exported."""
        answers = self.answer(warmup_images(self.card), [stop] * 2, keep_members=True)
        members_BEC = answers.member_probs_BEC
        assert members_BEC is not None
        off_BC = np.tensordot(self.card.weights, members_BEC, (0, 1)) - self.card.warmup
        known = (answers.probs_BC, answers.entropy_B, answers.information_B, off_BC)
        if not all(np.isfinite(each).all() for each in known) or np.abs(off_BC).max() > TOLERANCE:
            told = f"off by {np.abs(off_BC).max():.1g}, or not finite"
            raise _broken(folder, f"answers about the images of the card that are {told}")

    def answer(
        self,
        pixels_BCHW: NDArray[np.uint8],
        stops: Sequence[Stop],
        *,
        keep_members: bool = False,
    ) -> Answers:
        """What the bag says about images.

        Args:
            pixels_BCHW: raw, on the scale of the training images.
            stops: when each of them needs no more members.
            keep_members: whether every member's softmax is wanted.
        """
        patient = not any(stop.decided or stop.confidence is not None for stop in stops)
        if self.whole is not None and (patient or not self.groups):
            return ask_everyone(self.whole, pixels_BCHW, keep_members=keep_members)
        images, classes = len(pixels_BCHW), len(self.card.class_names)
        tally = Tally(self.rule, images, classes, keep_members=keep_members)
        rows_B = np.arange(images)
        for group in self.groups:
            asked = pixels_BCHW if len(rows_B) == images else pixels_BCHW[rows_B]
            tally.add(group.first, ask(group.session, asked), rows_B)
            if patient or group is self.groups[-1]:
                continue
            rows_B = rows_B[~tally.finished(stops)[rows_B]]
            if not len(rows_B):
                break
        return tally.answers()


def _sizes(members: int, groups: int) -> list[int]:
    """Sizes of so many near-equal groups, or of as many as there are members."""
    groups = min(groups, members)
    return [members // groups + (index < members % groups) for index in range(groups)]


def _read(folder: Path, card: Card) -> tuple[State, onnx.ModelProto]:
    try:
        state_K = safetensors.numpy.load_file(folder / MEMBERS)
        member = onnx.load_model(str(folder / MEMBER_ONNX))
    except (OSError, SafetensorError, onnx.checker.ValidationError) as error:
        raise _broken(folder, str(error).partition("\n")[0]) from None
    except Exception as error:  # protobuf's own error has no public home
        raise _broken(folder, f"{MEMBER_ONNX}: {type(error).__name__}") from None
    for given in member.graph.input[1:]:
        shape = (len(card.members), *(dim.dim_value for dim in given.type.tensor_type.shape.dim))
        got = state_K[given.name].shape if given.name in state_K else None
        if got != shape:
            raise _broken(folder, f"{MEMBERS}: expected {given.name} of shape {shape}, got {got}")
    return state_K, member


def _broken(folder: Path, problem: str) -> DataError:
    return DataError(
        f"{folder}: expected a bag written by `bend export --format onnx`, got: {problem}; "
        "export it again"
    )
