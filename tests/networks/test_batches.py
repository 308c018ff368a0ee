"""What each model is given at each step: the same resident and streamed, and from any step on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write_folder
from torch import Tensor

from bend_ray.data.augmentation import RandomViews
from bend_ray.data.datasets import ImageFolder
from bend_ray.data.examples import Examples
from bend_ray.data.streaming import Windows
from bend_ray.networks.architectures import ConvNet, Mlp
from bend_ray.networks.batches import Feed
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, form_for
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.tasks import Classification

CPU = torch.device("cpu")


def numbered(count: int, windows: Windows | None = None) -> Examples:
    """Examples whose input and label are their number."""
    return Examples(torch.arange(count)[:, None], torch.arange(count), windows)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def shown(
    part: Examples, batch_size: int, seeds: Sequence[int], num_steps: int, **options: Any
) -> list[Tensor]:
    """The numbers of the examples of each step, ``(K, B)``."""
    feed = Feed(part, lambda inputs: inputs, Recipe(batch_size=batch_size), Classification(), CPU)
    steps = []
    for window, index_KB in feed.batches(generators(seeds), num_steps, **options):
        steps.append(window.targets_W[index_KB])
        assert torch.equal(window.views(index_KB, [])[..., 0], steps[-1])
    return steps


WINDOWED = {
    "count": st.integers(10, 60),
    "batch_size": st.integers(2, 6),
    "window": st.integers(7, 70),
    "bootstrap": st.booleans(),
}


@given(**WINDOWED, num_steps=st.integers(1, 40), start=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_a_feed_goes_on_in_the_middle_where_it_would_have_been(
    count: int, batch_size: int, window: int, bootstrap: bool, num_steps: int, start: int
) -> None:
    part = numbered(count, Windows(window, seed=1))
    whole = shown(part, batch_size, [3, 4], num_steps, bootstrap=bootstrap)
    later = shown(part, batch_size, [3, 4], num_steps, bootstrap=bootstrap, start=start)
    assert len(whole) == num_steps
    assert [each.tolist() for each in later] == [each.tolist() for each in whole[start:]]


@given(**WINDOWED)
@settings(max_examples=60, deadline=None)
def test_a_pass_shows_a_model_its_sample_whoever_else_is_trained(
    count: int, batch_size: int, window: int, bootstrap: bool
) -> None:
    part = numbered(count, Windows(window, seed=1))
    steps = len(Recipe(batch_size=batch_size).batch_sizes(count))
    together = shown(part, batch_size, [3, 4], steps, bootstrap=bootstrap)
    alone = shown(part, batch_size, [4], steps, bootstrap=bootstrap)
    assert [each[1].tolist() for each in together] == [each[0].tolist() for each in alone]
    seen = torch.cat(together, dim=1)[0].tolist()
    assert len(seen) == count
    if not bootstrap:
        assert sorted(seen) == list(range(count))
    elif window >= count:
        again = torch.cat(shown(part, batch_size, [3], 2 * steps, bootstrap=True), dim=1)[0]
        assert sorted(again[count:].tolist()) == sorted(seen)


def test_a_part_of_one_window_is_gone_through_as_one_without() -> None:
    plain = shown(numbered(23), 5, [0, 1], 12, bootstrap=True)
    one = shown(numbered(23, Windows(23)), 5, [0, 1], 12, bootstrap=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, one, strict=True))


def test_a_bootstrap_keeps_its_sample_over_windows() -> None:
    part = numbered(4000, Windows(500))
    first, second = (
        set(torch.cat(shown(part, 50, [0], 80, bootstrap=True, epoch=e), dim=1)[0].tolist())
        for e in (0, 1)
    )
    # 63 % of the images are in a sample; a few of these a window leaves out.
    assert 0.60 < len(first) / 4000 < 0.66
    assert len(first & second) / len(first) > 0.9


@pytest.mark.parametrize("architecture", [Mlp(hidden=(4,)), ConvNet(channels=(2,))])
def test_models_are_the_same_resident_and_streamed(tmp_path: Path, architecture: Any) -> None:
    write_folder(tmp_path / "train", range(46))
    write_folder(tmp_path / "test", range(100, 105))
    spec = ImageFolder(root=str(tmp_path), num_validation=6, window=16)
    recipe = Recipe(epochs=3, batch_size=8, augmentation=RandomViews(flip=True, crop_padding=1))
    found = []
    for memory in (1.0, 33 * 108 / 1e9):
        parts = spec.model_copy(update={"memory": memory}).load()
        module = architecture.build(parts.input_shape, len(parts.class_names))
        layout = ParameterLayout.of(module)
        stack = Stack(module, layout, form_for(module, "cpu", parts.shown(2)))
        build = lambda p=parts: architecture.build(p.input_shape, len(p.class_names))  # noqa: E731
        start_KP = torch.stack([initial_parameters(build, layout.flatten, k) for k in range(3)])
        stretch = Stretch(start=0.5, epochs=2.5, bootstrap=True, snapshots=2)
        found.append(
            fit(
                stack, start_KP, parts.train, parts.normalise, recipe, stretch, generators(range(3))
            )
        )
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])
