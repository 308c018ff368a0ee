from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bend_ray.artifacts.population import Population


def population(num_models: int, **changes: Any) -> Population:
    values: dict[str, Any] = {
        "model_id": range(num_models),
        "trunk": [i // 2 for i in range(num_models)],
        "fork": [i % 2 for i in range(num_models)],
        "step": [10] * num_models,
        "seed": [2**40 + i for i in range(num_models)],
        "held_out": [i == 0 for i in range(num_models)],
        "val_accuracy": np.linspace(0, 1, num_models),
        "val_nll": np.linspace(1, 0, num_models),
        "fit_seconds": [0.5] * num_models,
        "origin": "trained",
        "theta_KP": np.arange(3.0 * num_models).reshape(num_models, 3),
        "layout_digest": "d1",
    }
    return Population(**{**values, **changes})


def test_arrays_are_converted_to_the_types_of_the_format() -> None:
    pop = population(4)
    assert len(pop) == 4
    assert pop.theta_KP.dtype == pop.val_nll.dtype == np.float32
    assert pop.seed.dtype == np.int64
    assert pop.trunk.dtype == np.int32
    assert pop.held_out.dtype == np.bool_
    assert pop.seed[1] == 2**40 + 1


def test_theta_of_the_right_type_is_not_copied() -> None:
    theta_KP = np.zeros((4, 3), dtype=np.float32)
    assert population(4, theta_KP=theta_KP).theta_KP is theta_KP


def test_an_origin_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="got 'found'"):
        population(4, origin="found")


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected theta_KP of shape \(K, P\), got \(4,\)"):
        population(4, theta_KP=np.zeros(4))
    with pytest.raises(ValueError, match=r"expected trunk of shape \(4,\), got \(3,\)"):
        population(4, trunk=[0, 1, 2])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([True, False, False, True], [0, 3]),
        (np.array([3, 1]), [3, 1]),
        ([], []),
        (slice(1, 3), [1, 2]),
    ],
)
def test_models_are_selected_by_mask_indices_or_slice(rows: Any, expected: list[int]) -> None:
    pop = population(4)
    chosen = pop.select(rows)
    assert chosen.model_id.tolist() == expected
    assert np.array_equal(chosen.theta_KP, pop.theta_KP[expected])
    assert chosen.held_out.tolist() == [i == 0 for i in expected]
    assert (chosen.origin, chosen.layout_digest) == ("trained", "d1")
