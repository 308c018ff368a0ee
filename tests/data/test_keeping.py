"""Examples and classes that are kept from models."""

import pickle

import pytest
import torch

from bend_ray.data.datasets import Digits
from bend_ray.data.examples import Examples, Parts
from bend_ray.data.inputs import CALIBRATION, LeftOut, Noise, Others
from bend_ray.errors import DataError
from bend_ray.tasks import Regression


def rows(examples: object) -> set[bytes]:
    assert isinstance(examples, Examples)
    assert isinstance(examples.inputs, torch.Tensor)
    return {row.numpy().tobytes() for row in examples.inputs}


def test_calibrating_examples_are_validation_examples_that_nobody_else_sees() -> None:
    whole, parts = Digits().load(), Digits(num_calibration=120).load()
    assert parts.calibration is CALIBRATION.of(parts)
    assert len(parts.calibration) == 120
    assert len(parts.validation) == 180
    assert rows(parts.calibration) | rows(parts.validation) == rows(whole.validation)
    assert not rows(parts.calibration) & rows(parts.validation)
    assert rows(parts.train) == rows(whole.train)
    assert rows(parts.test) == rows(whole.test)
    again, other = (Digits(num_calibration=120, split_seed=s).load() for s in (0, 1))
    assert rows(again.calibration) == rows(parts.calibration)
    assert rows(other.calibration) != rows(parts.calibration)


def test_some_validation_must_be_left() -> None:
    with pytest.raises(DataError, match="num_calibration: expected fewer than the 300 validation"):
        Digits(num_calibration=300).load()


def test_left_out_classes_are_in_no_part_and_their_test_examples_can_be_asked() -> None:
    whole, parts = Digits().load(), Digits(left_out=("3", "7"), num_calibration=50).load()
    names = parts.class_names
    assert names == ("0", "1", "2", "4", "5", "6", "8", "9")
    known = {name: index for index, name in enumerate(names)}
    assert isinstance(whole.test, Examples)
    kept = [str(label) not in ("3", "7") for label in whole.test.labels_N.tolist()]
    expected = [known[str(label)] for label in whole.test.labels_N[kept].tolist()]
    assert parts.test.labels_N.tolist() == expected
    for part in (parts.train, parts.validation, parts.calibration):
        assert part is not None
        assert set(part.labels_N.tolist()) == set(range(8))
    strange = LeftOut().of(parts)
    assert rows(strange) == rows(whole.test) - rows(parts.test)
    assert set(strange.labels_N.tolist()) == {-1}
    assert len(strange) + len(parts.test) == len(whole.test)
    assert pickle.loads(pickle.dumps(parts)).class_names == names


@pytest.mark.parametrize("names", [("x",), ("1", "x"), tuple("012345678")])
def test_classes_that_cannot_be_left_out_are_told(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"dataset.left_out: expected some of the classes 0, 1"):
        Digits(left_out=names).load()


def test_numbers_have_no_classes_to_leave_out() -> None:
    examples = Examples(torch.zeros(4, 2), torch.zeros(4, 1))
    parts = Parts(examples, examples, ("y",), None, task=Regression())
    with pytest.raises(DataError, match=r"dataset.left_out"):
        parts.without(["y"])


def test_without_left_out_classes_nobody_can_ask_about_them() -> None:
    with pytest.raises(DataError, match=r"left_out needs classes in dataset\.left_out"):
        LeftOut().of(Digits().load())


def test_noise_fills_the_range_and_is_the_same_every_time() -> None:
    parts = Digits().load()
    noise = Noise().of(parts)
    assert isinstance(noise.inputs, torch.Tensor)
    assert noise.inputs.shape == (len(parts.test), 1, 8, 8)
    assert noise.inputs.dtype == torch.uint8
    # Of 17 values each has its share.
    counts = torch.bincount(noise.inputs.flatten(), minlength=17).double()
    assert len(counts) == 17
    assert (counts / counts.sum() - 1 / 17).abs().max() < 0.005
    again = Noise().of(parts).inputs
    assert isinstance(again, torch.Tensor)
    assert torch.equal(noise.inputs, again)


def test_another_data_set_is_brought_to_size_and_range() -> None:
    parts = Digits().load()
    others = Others(dataset=Digits(split_seed=1)).of(parts)
    assert isinstance(others.inputs, torch.Tensor)
    assert others.inputs.shape[1:] == (1, 8, 8)
    assert rows(others) <= rows(Digits(split_seed=1).load().test)
