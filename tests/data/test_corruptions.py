"""Corruptions: the same every time, harder and harder, and what they say they are."""

from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch

from bend_ray.data.columns import Column
from bend_ray.data.datasets import Digits
from bend_ray.data.examples import Decoding, Examples, Parts
from bend_ray.data.inputs import IMAGES, SEVERITIES, TABLES, Corrupted, Corruption
from bend_ray.errors import DataError


@cache
def digits() -> Parts:
    return Digits().load()


def pixels(examples: object) -> torch.Tensor:
    assert isinstance(examples, Examples)
    assert isinstance(examples.inputs, torch.Tensor)
    return examples.inputs


def test_every_corruption_is_of_images_or_of_tables() -> None:
    assert {*IMAGES, *TABLES} == set(get_args(Corruption))
    assert not {*IMAGES} & {*TABLES}
    assert all(len(strengths) == SEVERITIES for _, strengths in IMAGES.values())


@pytest.mark.parametrize("name", IMAGES)
def test_images_change_more_and_more_and_the_same_every_time(name: Corruption) -> None:
    found, test = Corrupted(corruption=name).of(digits()), digits().test
    x = pixels(found)
    assert x.dtype == torch.uint8
    assert x.max() <= 16
    assert torch.equal(x, pixels(Corrupted(corruption=name).of(digits())))
    assert torch.equal(found.labels_N, test.labels_N.repeat(SEVERITIES))
    changes = [(each.float() - pixels(test).float()).abs().mean().item() for each in x.chunk(5)]
    assert changes == sorted(changes)
    assert changes[-1] > 2 * changes[0] or changes[0] > 1
    assert changes[-1] > 0.5


def test_strengths_are_what_they_say() -> None:
    grey = Examples(torch.full((200, 1, 16, 16), 128, dtype=torch.uint8), torch.zeros(200))
    parts = Parts(grey, grey, tuple("ab"), None, decoding=Decoding())
    for name, strength in (("gaussian_noise", 0.04), ("shot_noise", (0.502 / 500) ** 0.5)):
        first = pixels(Corrupted(corruption=name).of(parts)).chunk(5)[0].double() / 255  # type: ignore[arg-type]
        assert first.std().item() == pytest.approx(strength, rel=0.03)
    spoilt = pixels(Corrupted(corruption="impulse_noise").of(parts)).chunk(5)[4]
    assert (spoilt != 128).double().mean().item() == pytest.approx(0.07, rel=0.05)
    brighter = pixels(Corrupted(corruption="brightness").of(parts)).chunk(5)[4]
    assert set(brighter.unique().tolist()) == {205}  # 128 and three tenths of 255


def test_a_translation_moves_every_image_one_of_four_ways() -> None:
    dot = torch.zeros(4, 1, 20, 20, dtype=torch.uint8)
    dot[:, :, 10, 10] = 200
    given = Examples(dot, torch.zeros(4))
    parts = Parts(given, given, tuple("ab"), None, decoding=Decoding())
    by_two = pixels(Corrupted(corruption="translate").of(parts)).chunk(5)[1]  # a tenth of 20
    places = [tuple(image[0].nonzero()[0].tolist()) for image in by_two]
    assert places == [(10, 12), (10, 8), (12, 10), (8, 10)]


def table(num: int = 4000) -> Parts:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 3, generator=generator)
    x[:, 2] = (torch.arange(num) % 10 == 0).float()  # tells of what is missing in the second
    columns = {
        "a": Column(kind="number", knots=(0.0, 1.0), scores=(0.0, 1.0), missing=False),
        "b": Column(kind="number", knots=(0.0, 1.0), scores=(0.0, 1.0), missing=True),
    }
    rows = Examples(x, torch.arange(num))
    return Parts(rows, rows, tuple("ab"), None, standardise=False, columns=columns)


def test_columns_get_noise_and_gaps() -> None:
    parts = table()
    x = pixels(parts.test)
    noisy = pixels(Corrupted(corruption="noisy_columns").of(parts)).chunk(5)[4]
    assert (noisy - x).std(dim=0).numpy() == pytest.approx(x.std(dim=0).numpy(), rel=0.05)
    gaps = pixels(Corrupted(corruption="missing_columns").of(parts)).chunk(5)[4]
    gone = (gaps[:, 1] == 0) & (gaps[:, 2] == 1)
    assert gone.double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(gaps[~gone][:, 1:], x[~gone][:, 1:])


def test_groups_shift_along_the_first_principal_direction_and_keep_their_labels() -> None:
    parts = table()
    found = Corrupted(corruption="shifted_groups").of(parts)
    x = pixels(found)
    assert torch.equal(x, pixels(parts.test)[found.labels_N])
    base = pixels(parts.test)
    means = [((each - base.mean(0)) / base.std(0)).mean(0).norm().item() for each in x.chunk(5)]
    assert np.all(np.diff(means) > 0)


@pytest.mark.parametrize("name", ["noisy_columns", "rotate"])
def test_a_corruption_of_the_other_kind_is_refused(name: Corruption) -> None:
    parts = digits() if name in TABLES else table(8)
    with pytest.raises(
        DataError, match=rf"evaluation.shift: expected corruptions of .*, got {name}"
    ):
        Corrupted(corruption=name).of(parts)


def test_colour_images_are_corrupted_as_well() -> None:
    colour = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    given = Examples(colour.to(torch.uint8), torch.zeros(8))
    parts = Parts(given, given, tuple("ab"), None, decoding=Decoding())
    for name in IMAGES:
        assert pixels(Corrupted(corruption=name).of(parts)).shape == (40, 3, 32, 32)  # type: ignore[arg-type]
