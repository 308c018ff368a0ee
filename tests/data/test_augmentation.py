from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.data.augmentation import RandomViews
from bend_ray.data.examples import Examples
from bend_ray.networks.architectures import Mlp
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack
from bend_ray.parameters.layout import ParameterLayout


def generators(seeds: range | tuple[int, ...]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pictures(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def views(image_CHW: Tensor, augmentation: RandomViews) -> set[bytes]:
    """All views there are of one image, one by one."""
    padding = augmentation.crop_padding
    height, width = image_CHW.shape[1:]
    padded = nn.functional.pad(image_CHW, [padding] * 4)
    mirrored = nn.functional.pad(image_CHW.flip(-1), [padding] * 4)
    sources = [padded, mirrored] if augmentation.flip else [padded]
    return {
        source[:, top : top + height, left : left + width].numpy().tobytes()
        for source in sources
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }


@given(
    flip=st.booleans(),
    padding=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 5),
    width=st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_every_image_becomes_one_of_its_own_views(
    flip: bool, padding: int, channels: int, height: int, width: int
) -> None:
    augmentation = RandomViews(flip=flip, crop_padding=padding)
    pixels_KBCHW = pictures(2, 3, channels, height, width)
    seen_KBCHW = augmentation.apply(pixels_KBCHW, generators((0, 1)))
    assert seen_KBCHW.shape == pixels_KBCHW.shape
    assert seen_KBCHW.dtype == torch.uint8
    for seen, image in zip(seen_KBCHW.flatten(0, 1), pixels_KBCHW.flatten(0, 1), strict=True):
        assert seen.numpy().tobytes() in views(image, augmentation)


def test_all_views_are_drawn_and_equally_often() -> None:
    augmentation, image = RandomViews(flip=True, crop_padding=1), pictures(1, 3, 4)
    seen = augmentation.apply(image.expand(1, 9000, 1, 3, 4), generators((0,)))[0]
    drawn = [view.numpy().tobytes() for view in seen]
    counts = [drawn.count(view) for view in views(image, augmentation)]
    assert len(counts) == 18
    assert all(count == pytest.approx(500, abs=110) for count in counts)


def test_no_augmentation_draws_nothing_and_changes_nothing() -> None:
    pixels, generator = pictures(1, 2, 1, 3, 3), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert RandomViews().apply(pixels, [generator]) is pixels
    assert torch.equal(generator.get_state(), state)


def test_a_models_views_do_not_depend_on_its_cohort() -> None:
    augmentation = RandomViews(flip=True, crop_padding=2)
    pixels = pictures(1, 5, 3, 6, 6).expand(3, 5, 3, 6, 6)
    together = augmentation.apply(pixels, generators((7, 8, 9)))
    assert torch.equal(augmentation.apply(pixels[:1], generators((9,)))[0], together[2])
    assert not torch.equal(together[0], together[1])


def train(augmentation: RandomViews, seeds: tuple[int, ...], epochs: float) -> Tensor:
    def build() -> nn.Module:
        return Mlp(hidden=(4,)).build((1, 5, 5), 3).double()

    layout = ParameterLayout.of(build())
    labels = torch.arange(20) % 3
    return fit(
        Stack(build(), layout),
        torch.full((len(seeds), layout.size), 0.1, dtype=torch.float64),
        Examples(pictures(20, 1, 5, 5), labels),
        lambda pixels: pixels.double() / 255,
        Recipe(epochs=4, batch_size=6, augmentation=augmentation),
        Stretch(start=0.0, epochs=epochs, snapshots=int(epochs)),
        generators(seeds),
    )


def test_an_augmented_training_is_each_models_own_and_begins_as_a_shorter_one() -> None:
    augmentation = RandomViews(flip=True, crop_padding=1)
    together = train(augmentation, (0, 1, 2), 3.0)
    torch.testing.assert_close(train(augmentation, (2,), 3.0)[:, 0], together[:, 2])
    assert torch.equal(train(augmentation, (0, 1, 2), 2.0), together[:2])
    assert not torch.allclose(train(RandomViews(), (0, 1, 2), 3.0), together)
