"""What is kept from models: examples for calibration, and whole classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bend_ray.data.examples import Examples, Parts, itself
from bend_ray.errors import DataError
from bend_ray.process.lazy import torch
from bend_ray.tasks import Classification

if TYPE_CHECKING:
    from torch import Tensor

    from bend_ray.data.streaming import Streamed


def kept_back(parts: Parts, count: int, seed: int) -> Parts:
    """So many validation examples moved to a part of their own; DataError where none are left."""
    if not count:
        return parts
    validation = parts.validation
    if count >= len(validation):
        raise DataError(
            f"dataset.num_calibration: expected fewer than the {len(validation)} validation "
            f"examples, got {count}; lower it or raise dataset.num_validation"
        )
    order_N = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(validation)))
    own_N, rest_N = order_N[:count].sort().values, order_N[count:].sort().values
    return replace(parts, calibration=validation.some(own_N), validation=validation.some(rest_N))


def without(parts: Parts, names: Sequence[str]) -> Parts:
    """All parts without some classes; their test examples are ``load_left_out``'s.

    DataError where there are no such classes, or fewer than two others.
    """
    known = parts.class_names
    rest = [index for index, name in enumerate(known) if name not in names]
    is_classes = isinstance(parts.task, Classification)
    if not is_classes or len(known) - len(rest) < len(set(names)) or len(rest) < 2:
        raise DataError(
            f"dataset.left_out: expected some of the classes {', '.join(known[:20]) or 'of none'}, "
            f"and two others at least, got {', '.join(names)}"
        )
    place_C = torch.full((len(known),), -1)
    place_C[rest] = torch.arange(len(rest))
    load_test = parts.load_test
    return replace(
        parts,
        train=_of_classes(parts.train, place_C),
        validation=_of_classes(parts.validation, place_C),
        class_names=tuple(known[index] for index in rest),
        load_test=load_test and partial(_loaded, load_test, place_C, True),
        load_left_out=partial(
            _loaded, load_test or partial(itself, parts.validation), place_C, False
        ),
    )


def _loaded(
    load: Callable[[], Examples | Streamed], place_C: Tensor, shown: bool
) -> Examples | Streamed:
    return _of_classes(load(), place_C, shown)


def _of_classes(
    part: Examples | Streamed, place_C: Tensor, shown: bool = True
) -> Examples | Streamed:
    """The examples of classes that have a place, or of those that have none, labelled -1."""
    part = part.relabelled(place_C)
    return part.some(((part.labels_N >= 0) == shown).nonzero().flatten())
