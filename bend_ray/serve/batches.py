"""Questions of several clients, answered together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bend_ray.serve.bag import Bag
from bend_ray.serve.queries import Question
from bend_ray.serve.voting import Answers


def answer_batch(items: Sequence[tuple[Bag, Question]]) -> list[Answers]:
    """The answer to each question, by the bag it was put to.

    While one bag replaces another, a batch may hold questions to both.
    """
    answers: dict[int, Answers] = {}
    for bag in {id(bag): bag for bag, _ in items}.values():
        asked = [index for index, (own, _) in enumerate(items) if own is bag]
        answers |= zip(asked, _together(bag, [items[i][1] for i in asked]), strict=True)
    return [answers[index] for index in range(len(items))]


def _together(bag: Bag, questions: Sequence[Question]) -> list[Answers]:
    pixels_BCHW = np.concatenate([question.pixels_BCHW for question in questions])
    stops = [question.stop for question in questions for _ in range(len(question))]
    keep = any(question.keep_members for question in questions)
    answers = bag.answer(pixels_BCHW, stops, keep_members=keep)
    ends = np.cumsum([len(question) for question in questions]).tolist()
    return [
        answers.rows(end - len(question), end)
        for question, end in zip(questions, ends, strict=True)
    ]
