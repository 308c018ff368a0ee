"""Inputs that models are asked about, by name: an axis, of which the parts of a data set are one.

To add a set: one class with a ``kind`` of its own, ``name`` and ``of``, and its name in the union.

One is the test part corrupted, five times harder and harder, the same every time. Of images these
are the families of CIFAR-10-C that need no other data, at its constants where an image's size does
not matter; of tables and other floats noise, missing columns and shifted groups.
Source: Hendrycks & Dietterich, "Benchmarking neural network robustness", 2019.

Shape letters: N examples, C channels, H rows, W columns, F features.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bend_ray.data.datasets import Dataset
from bend_ray.data.examples import Examples, Parts, each, first
from bend_ray.data.streaming import Streamed
from bend_ray.errors import DataError
from bend_ray.process.lazy import PIL, Tensor, torch, v2
from bend_ray.randomness import generator_for
from bend_ray.spec import Spec

SEVERITIES = 5
GROUP = 32
"""Images that are bent by one field."""
BLOCK = 8 * GROUP
"""Images that are corrupted at once."""
Changed = tuple[Tensor, Tensor]
"""Rows of a table, and which of its own they were."""

Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "gaussian_blur", "motion_blur", "brightness",
    "contrast", "jpeg", "pixelate", "rotate", "translate", "elastic",
    "noisy_columns", "missing_columns", "shifted_groups",
]  # fmt: skip


class _Named(Spec):
    """What asked inputs have: a name of their own among all of an evaluation."""

    kind: str
    _called: ClassVar[str] = "kind"
    """The field that has it."""

    @property
    def name(self) -> str:
        """By which they are told from others."""
        return str(getattr(self, self._called))

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples; DataError where a data set has none."""
        raise NotImplementedError

    def named(self, parts: Parts) -> str:
        """Of which part they are, as results say it."""
        return self.name


class Part(_Named):
    """A part of the data set that no model learns from."""

    kind: Literal["part"] = "part"
    part: Literal["validation", "test", "calibration"]
    _called = "part"

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples."""
        found: Examples | Streamed = getattr(parts, self.part)
        return found

    def named(self, parts: Parts) -> str:
        """Which part it is: where there is no test part, validation stands in for it."""
        return "validation" if self.part == "test" and parts.load_test is None else self.part


class LeftOut(_Named):
    """Test examples of the classes that dataset.left_out keeps from all models: near."""

    kind: Literal["left_out"] = "left_out"

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples."""
        if parts.load_left_out is None:
            raise DataError("evaluation.ood: left_out needs classes in dataset.left_out, got none")
        return parts.load_left_out()


class Noise(_Named):
    """As many examples as the test part has, of numbers drawn in the range of its own: far."""

    kind: Literal["noise"] = "noise"

    def of(self, parts: Parts) -> Examples:
        """The examples."""
        test = parts.test
        generator = generator_for(0, "noise")

        def drawn(values: Any) -> Any:
            low, high = values.aminmax()
            share = torch.rand(len(test), *values.shape[1:], generator=generator)
            span = (high.double() - low + (not values.is_floating_point())) * share + low
            return span.to(values.dtype)

        return Examples(each(drawn, test.take(slice(1000))), test.labels_N)


class Others(_Named):
    """The test part of another data set of images, brought to the size and channels of this one."""

    kind: Literal["dataset"] = "dataset"
    dataset: Dataset
    """Which one; its knobs are those of ``dataset``."""

    @property
    def name(self) -> str:
        """The data set's."""
        return getattr(self.dataset, "name", None) or self.dataset.kind

    def of(self, parts: Parts) -> Examples:
        """The examples, at most as many as the test part has."""
        theirs, ours = self.dataset.load(), parts.decoding
        if ours is None or theirs.decoding is None:
            raise DataError("evaluation.ood: expected data sets of images, as other inputs differ")
        given, shape = first(theirs.test.take(slice(len(parts.test)))), parts.input_shape
        assert isinstance(shape, tuple)
        channels, *size = shape
        scaled = given.float() * (ours.pixel_max / theirs.decoding.pixel_max)
        pixels = v2.functional.resize(scaled, size, antialias=True)
        pixels = pixels.mean(dim=1, keepdim=True) if channels == 1 else pixels
        pixels = pixels.expand(-1, channels, -1, -1).round().clamp(0, ours.pixel_max)
        return Examples(pixels.to(torch.uint8), theirs.test.labels_N[: len(pixels)])


class Corrupted(_Named):
    """The test part at every severity of a corruption, ``SEVERITIES`` times as many examples."""

    kind: Literal["corrupted"] = "corrupted"
    corruption: Corruption
    _called = "corruption"

    def of(self, parts: Parts) -> Examples | Streamed:
        """All at severity 1, then at 2, and so on; images that stay in files do so."""
        corruption, test, is_image = self.corruption, parts.test, parts.decoding is not None
        inputs = test.take(slice(1)) if isinstance(test, Streamed) else test.inputs
        if not isinstance(inputs, torch.Tensor) or (corruption in IMAGES) != is_image:
            raise DataError(
                f"evaluation.shift: expected corruptions of {'images' if is_image else 'columns'}, "
                f"{', '.join(IMAGES if is_image else TABLES)}, got {corruption}"
            )
        if parts.decoding is not None:
            white = parts.decoding.pixel_max
            if isinstance(test, Streamed):
                known = {field.name: getattr(test, field.name) for field in fields(test)}
                return CorruptedStream(**known, corruption=corruption, white=white)
            pixels = inputs.new_empty(SEVERITIES * len(test), *inputs.shape[1:])
            for number, block in enumerate(torch.split(pixels, len(test))):
                for start in range(0, len(test), BLOCK):
                    own = slice(start, start + BLOCK)
                    block[own] = _spoilt(inputs[own], corruption, white, number, start)
            return Examples(pixels, test.labels_N.repeat(SEVERITIES))
        generator = generator_for(0, "corruption", corruption)
        shares = [severity / SEVERITIES for severity in range(1, SEVERITIES + 1)]
        drawn = [TABLES[corruption](inputs.float(), share, parts, generator) for share in shares]
        changed, chosen = zip(*drawn, strict=True)
        return Examples(torch.cat(changed), test.labels_N[torch.cat(chosen)])


VALIDATION, TEST = Part(part="validation"), Part(part="test")
CALIBRATION = Part(part="calibration")

Outside = Annotated[LeftOut | Noise | Others, Field(discriminator="kind")]
Inputs = Part | LeftOut | Noise | Others | Corrupted


@dataclass(frozen=True, kw_only=True)
class CorruptedStream(Streamed):
    """Images that stay in their files, corrupted when they are asked for."""

    corruption: Corruption
    white: int

    @cached_property
    def labels_N(self) -> Tensor:  # noqa: N802 - a shape
        """The class of each image at each severity, int64."""
        return torch.from_numpy(self.source.labels_N[self.rows_N]).repeat(SEVERITIES)

    def __len__(self) -> int:
        return SEVERITIES * len(self.rows_N)

    def take(self, index: Any) -> Tensor:
        """Some images ``(M, C, H, W)``, decoded and corrupted by this process now."""
        place_M = torch.arange(len(self))[index].numpy()
        pixels_MCHW = torch.empty(len(place_M), *self.shape, dtype=torch.uint8)
        severity_M, image_M = np.divmod(place_M, len(self.rows_N))
        start_M = image_M - image_M % BLOCK
        for number, start in {*zip(severity_M.tolist(), start_M.tolist(), strict=True)}:
            clean = super().take(slice(start, start + BLOCK))
            own = (severity_M == number) & (start_M == start)
            spoilt = _spoilt(clean, self.corruption, self.white, number, start)
            pixels_MCHW[own] = spoilt[image_M[own] - start]
        return pixels_MCHW

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pieces ``(M, C, H, W)`` of the part, one after another."""
        return map(self.take, pieces)


def _spoilt(clean: Tensor, corruption: Corruption, white: int, number: int, start: int) -> Tensor:
    """A block of pixels, which has a generator of its own, at a severity."""
    generator = generator_for(0, "corruption", corruption, number, start)
    work, strengths = IMAGES[corruption]
    pixels = work(clean.float() / white, strengths[number], generator)
    return (pixels.clamp(0, 1) * white).round().to(torch.uint8)


def _impulse(x_NCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(x_NCHW.shape, generator=generator)
    return torch.where(drawn < share, (drawn < share / 2).float(), x_NCHW)


def _motion(x_NCHW: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    wide = torch.nn.functional.pad(x_NCHW, (int(pixels), 0, 0, 0), mode="replicate")
    return torch.nn.functional.avg_pool2d(wide, (1, int(pixels) + 1), stride=1)


def _jpeg(x_NCHW: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    # torchvision is about to drop its encoder.
    pixels_NHWC = (x_NCHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found_NHWC = np.empty_like(pixels_NHWC)
    for image, out in zip(pixels_NHWC, found_NHWC, strict=True):
        coded = io.BytesIO()
        # Of a grey image Pillow wants no channel.
        PIL.Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            coded, "JPEG", quality=int(quality)
        )
        out[:] = np.array(PIL.Image.open(coded)).reshape(out.shape)
    return torch.from_numpy(found_NHWC).permute(0, 3, 1, 2).float() / 255


def _pixelate(x_NCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    size = list(x_NCHW.shape[-2:])
    smaller = [max(1, round(share * edge)) for edge in size]
    few = v2.functional.resize(x_NCHW, smaller, antialias=True)
    blocks: Tensor = v2.functional.resize(few, size, v2.InterpolationMode.NEAREST)
    return blocks


def _moved(x_NCHW: Tensor, ways: Sequence[tuple[float, float, float]]) -> Tensor:
    """Every image in its turn one of several ways: degrees, and widths to the right and down."""
    found = x_NCHW.clone()
    for turn, (degrees, *widths) in enumerate(ways):
        own, shift = slice(turn, None, len(ways)), [share * x_NCHW.shape[-1] for share in widths]
        how = degrees, shift, 1.0, [0.0, 0.0], v2.InterpolationMode.BILINEAR
        found[own] = v2.functional.affine(x_NCHW[own], *how)
    return found


def _elastic(x_NCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Bend images by so much of their width, the root of the mean square along each axis."""
    width = x_NCHW.shape[-1]
    sigma = max(1.0, width / 16)
    # Of uniform numbers in -1..1, blurred, the deviation is 1 / (sqrt(12 pi) sigma).
    bend = v2.ElasticTransform(
        alpha=2 * share * width * math.sqrt(12 * math.pi) * sigma, sigma=sigma
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return torch.cat([bend(group) for group in torch.split(x_NCHW, GROUP)])


def _noisy(x_NF: Tensor, share: float, parts: Parts, generator: torch.Generator) -> Changed:
    """Noise of up to one standard deviation of each column."""
    deviation_F = x_NF.std(dim=0)
    noise = torch.randn(x_NF.shape, generator=generator)
    return x_NF + share * deviation_F * noise, torch.arange(len(x_NF))


def _missing(x_NF: Tensor, share: float, parts: Parts, generator: torch.Generator) -> Changed:
    """Up to half of a row's columns, missing as they would be in a file."""
    changed, end = x_NF.clone(), 0
    widths = [(c.width, c.missing) for c in parts.columns.values()] or [(1, False)] * x_NF.shape[1]
    for width, told in widths:
        gone_N = torch.rand(len(x_NF), generator=generator) < share / 2
        changed[gone_N, end : end + width] = 0.0 if parts.columns else x_NF[:, end].mean()
        end += width
        if told:
            changed[gone_N, end - 1] = 1.0
    return changed, torch.arange(len(x_NF))


def _shifted(x_NF: Tensor, share: float, parts: Parts, generator: torch.Generator) -> Changed:
    """Rows drawn again, the likelier the further they lie along the first principal direction."""
    centred_NF = (x_NF - x_NF.mean(dim=0)) / x_NF.std(dim=0).clamp_min(1e-6)
    along_N = np.linalg.svd(centred_NF.double().numpy(), full_matrices=False)[0][:, 0]
    along_N = along_N / along_N.std()
    weight_N = torch.from_numpy(np.exp(2 * share * (along_N - along_N.max())))
    index_N = torch.multinomial(weight_N, len(x_NF), replacement=True, generator=generator)
    return x_NF[index_N], index_N


IMAGES: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (
        lambda x, by, g: x + by * torch.randn(x.shape, generator=g),
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot_noise": (lambda x, by, g: torch.poisson(x * by, g) / by, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (
        lambda x, by, g: v2.functional.gaussian_blur(x, [5, 5], [by]),
        (0.4, 0.6, 0.7, 0.8, 1.0),
    ),
    "motion_blur": (_motion, (1, 2, 3, 4, 5)),
    # torchvision's multiplies, which leaves what is black.
    "brightness": (lambda x, by, g: x + by, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (
        lambda x, by, g: v2.functional.adjust_contrast(x, by),
        (0.75, 0.5, 0.4, 0.3, 0.15),
    ),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "rotate": (lambda x, by, g: _moved(x, [(by, 0, 0), (-by, 0, 0)]), (5, 10, 15, 20, 30)),
    "translate": (
        lambda x, by, g: _moved(x, [(0, by, 0), (0, -by, 0), (0, 0, by), (0, 0, -by)]),
        (0.05, 0.1, 0.15, 0.2, 0.25),
    ),
    "elastic": (_elastic, (0.01, 0.02, 0.03, 0.04, 0.06)),
}
"""What is done to pixels in 0..1, and how much at each severity."""
TABLES = {"noisy_columns": _noisy, "missing_columns": _missing, "shifted_groups": _shifted}
"""What is done to columns, up to its most, and which rows these are then."""
