from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bend_ray.data.datasets import Digits
from bend_ray.data.examples import Examples, Parts


@pytest.fixture(scope="module")
def digits() -> Parts:
    return Digits().load()


def images(pixels: torch.Tensor) -> Examples:
    return Examples(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def rows(part: Examples) -> list[bytes]:
    """Each image with its label, as bytes."""
    flat = part.inputs.flatten(1).numpy()
    table = np.concatenate([flat, part.labels_N[:, None].numpy().astype(np.uint8)], axis=1)
    return [row.tobytes() for row in table]


def never() -> Examples:
    raise AssertionError("the test part was read")


def test_the_parts_have_the_sizes_and_types_they_should(digits: Parts) -> None:
    for part, size in ((digits.train, 1000), (digits.validation, 300), (digits.test, 497)):
        assert len(part) == size
        assert part.inputs.shape == (size, 1, 8, 8)
        assert part.inputs.dtype == torch.uint8
        assert part.labels_N.dtype == torch.int64
        assert set(part.labels_N.tolist()) == set(range(10))
    assert digits.input_shape == (1, 8, 8)
    assert digits.class_names == tuple("0123456789")


def test_the_parts_are_scikit_learns_images_each_once(digits: Parts) -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    # All 1,797 images differ, so equal multisets also say that the parts are disjoint.
    expected = np.column_stack([theirs.data, theirs.target]).astype(np.uint8)
    assert len({row.tobytes() for row in expected}) == len(expected) == 1797
    ours = [row for part in (digits.train, digits.validation, digits.test) for row in rows(part)]
    assert sorted(ours) == sorted(row.tobytes() for row in expected)


def test_the_split_is_the_same_every_time(digits: Parts) -> None:
    again = Digits().load()
    for part, same in ((digits.train, again.train), (digits.test, again.test)):
        assert rows(part) == rows(same)
    # As drawn with numpy 2.4: published figures are about this split.
    assert digits.train.labels_N[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]


def test_another_split_seed_is_another_split(digits: Parts) -> None:
    other = Digits(split_seed=1).load()
    assert set(rows(other.train)) != set(rows(digits.train))
    assert set(rows(other.test)) != set(rows(digits.test))


def test_the_sizes_of_the_parts_are_what_was_asked_for() -> None:
    small = Digits(num_train=30, num_validation=7).load()
    assert (len(small.train), len(small.validation), len(small.test)) == (30, 7, 1760)


@pytest.mark.parametrize(("num_train", "num_validation"), [(1497, 300), (1, 1796), (2000, 300)])
def test_a_split_that_leaves_no_test_is_refused(num_train: int, num_validation: int) -> None:
    with pytest.raises(ValidationError, match=f"1797.*left.*got {num_train + num_validation}"):
        Digits(num_train=num_train, num_validation=num_validation)


def test_a_split_may_leave_one_image_for_the_test() -> None:
    assert len(Digits(num_train=1496).load().test) == 1


def test_the_test_part_is_read_when_it_is_asked_for_and_once() -> None:
    reads: list[Examples] = []

    def load_test() -> Examples:
        reads.append(images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8)))
        return reads[-1]

    part = images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    dataset = Parts(part, part, ("a",), load_test)
    dataset.normalise(dataset.validation.inputs)
    assert dataset.input_shape == (1, 2, 2)
    assert reads == []
    assert dataset.test is dataset.test
    assert len(reads) == 1


def test_statistics_are_those_of_each_training_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 3, 4, 5), generator=generator, dtype=torch.uint8)
    pixels[:, 1] //= 8
    bright = images(torch.full((4, 3, 4, 5), 255, dtype=torch.uint8))
    dataset = Parts(images(pixels), bright, ("a",), never)
    mean, std = dataset.statistics
    values = pixels.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(mean[:, 0, 0], values.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(std[:, 0, 0], values.std(axis=1, ddof=1), rtol=1e-6)


def test_normalised_training_pixels_have_mean_zero_and_variance_one(digits: Parts) -> None:
    normalised = digits.normalise(digits.train.inputs)
    assert normalised.dtype == torch.float32
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(normalised.std()) == pytest.approx(1.0, abs=1e-5)


def test_images_are_normalised_alike_alone_and_in_any_batch(digits: Parts) -> None:
    pixels = digits.validation.inputs[:6]
    together = digits.normalise(pixels)
    assert torch.equal(digits.normalise(pixels.view(2, 3, 1, 8, 8)).flatten(0, 1), together)
    assert torch.equal(digits.normalise(pixels[4]), together[4])


def test_a_channel_that_never_changes_becomes_zero() -> None:
    dataset = Parts(
        images(torch.full((5, 2, 3, 3), 7, dtype=torch.uint8)), images(torch.zeros(0)), (), never
    )
    assert torch.equal(dataset.normalise(dataset.train.inputs), torch.zeros(5, 2, 3, 3))
