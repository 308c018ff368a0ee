"""Augmentation: what a model sees of an image differs from epoch to epoch.

Shape letters: K models, B images a batch, M = K B, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from bend_ray.errors import ConfigError
from bend_ray.imported import Imported
from bend_ray.process.lazy import Tensor, torch, v2
from bend_ray.spec import Spec


class RandomViews(Spec):
    """Random views of the training images; every model draws its own."""

    kind: Literal["random_views"] = "random_views"
    flip: bool = False
    """Mirror every other image, left to right, at random."""
    crop_padding: NonNegativeInt = 0
    """Black pixels put around an image, of which a window of the old size is cut at random."""
    policy: Literal["rand_augment", "trivial_augment"] | None = None
    """Then distort an image and its colours, by torchvision's RandAugment or TrivialAugmentWide."""
    erasing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Then black out a random rectangle, in this share of them, by torchvision's RandomErasing."""

    @property
    def shows_images_as_they_are(self) -> bool:
        """Whether there is one view of an image, itself."""
        return not (self.flip or self.crop_padding or self.policy or self.erasing)

    def apply(self, pixels_KBCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A random view of each image, on the pixels' device; one generator a model, on the CPU.

        Source: ``RandomCrop(padding=...)`` and ``RandomHorizontalFlip`` of torchvision.
        """
        if self.flip or self.crop_padding:
            pixels_KBCHW = self._moved(pixels_KBCHW, generators)
        if self.policy or self.erasing:
            pairs = zip(pixels_KBCHW, generators, strict=True)
            pixels_KBCHW = torch.stack([self._distorted(*pair) for pair in pairs])
        return pixels_KBCHW

    def _moved(self, pixels_KBCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        batch, (height, width) = pixels_KBCHW.shape[1], pixels_KBCHW.shape[-2:]
        padding, device = self.crop_padding, pixels_KBCHW.device
        # Of every model, from its own generator: mirrored or not, first row, first column.
        bounds = (2 if self.flip else 1, 2 * padding + 1, 2 * padding + 1)
        drawn_K = [
            torch.stack([torch.randint(bound, (batch,), generator=g) for bound in bounds])
            for g in generators
        ]
        flip_M, top_M, left_M = torch.stack(drawn_K, dim=1).flatten(1).to(device)
        columns_W = torch.arange(width, device=device)
        columns_MW = torch.where(flip_M[:, None] == 1, columns_W.flip(0), columns_W)
        columns_MW = columns_MW + left_M[:, None]
        rows_MH = torch.arange(height, device=device) + top_M[:, None]
        padded = torch.nn.functional.pad(pixels_KBCHW.flatten(0, 1), [padding] * 4)
        images_M, channels_C = (torch.arange(n, device=device) for n in padded.shape[:2])
        places = images_M[:, None, None, None], channels_C[:, None, None], rows_MH[:, None, :, None]
        return padded[*places, columns_MW[:, None, None, :]].view_as(pixels_KBCHW)

    def _distorted(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Each image by itself: of a batch torchvision would distort all alike."""
        policies = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}
        steps = [policies[self.policy]()] if self.policy else []
        steps += [v2.RandomErasing(self.erasing)] if self.erasing else []
        transform = v2.Compose(steps)
        # torchvision draws from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(generator.get_state())
            views_BCHW = torch.stack([transform(view) for view in pixels_BCHW])
            generator.set_state(torch.default_generator.get_state())
        return views_BCHW


class ImportedAugmentation(Imported):
    """One's own: a function of a batch ``(B, ...)`` and a generator that gives views of it.

    Inputs are as the data set keeps them, pixels as uint8; views have their shape and type.
    """

    shows_images_as_they_are: ClassVar[bool] = False

    def apply(self, inputs_KB: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The function's view of each batch; ConfigError where it has another shape or type."""
        views = []
        for batch, generator in zip(inputs_KB, generators, strict=True):
            views.append(view := self.call(batch, generator, **self.arguments))
            if view.shape != batch.shape or view.dtype != batch.dtype:
                raise ConfigError(
                    f"{self.target}: expected views {tuple(batch.shape)} of {batch.dtype}, got "
                    f"{tuple(view.shape)} of {view.dtype}"
                )
        return torch.stack(views)


Augmentation = Annotated[RandomViews | ImportedAugmentation, Field(discriminator="kind")]
