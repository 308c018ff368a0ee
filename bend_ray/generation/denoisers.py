"""Denoisers: ``spec.build(latent_size, num_conditions) -> module``.

A module maps noisy latents ``(B, Z)``, times ``(B,)`` in [0, 1] and condition ids ``(B,)`` to
predictions ``(B, Z)``. To add one: one class, and its name in the union at the bottom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from bend_ray.imported import Imported
from bend_ray.spec import OddSize, Spec

if TYPE_CHECKING:
    from bend_ray.generation.conditioning import ConditionedDenoiser
    from bend_ray.generation.conv1d import UNet1d
    from bend_ray.generation.mlp import ModulatedMlp


class MlpDenoiser(Spec):
    """Residual MLP, modulated by the time and the condition.

    It learns how latents differ from a Gaussian of each trunk, whose exact denoiser it starts as.
    """

    kind: Literal["mlp"] = "mlp"
    starts_gaussian: ClassVar[bool] = True
    hidden: PositiveInt = 128
    """Units of the residual stream."""
    blocks: PositiveInt = 2
    """Residual blocks."""

    def build(self, latent_size: int, num_conditions: int) -> ModulatedMlp:
        """The module for latents of ``latent_size``."""
        from bend_ray.generation.mlp import ModulatedMlp

        return ModulatedMlp(latent_size, num_conditions, self.hidden, self.blocks)


class ConvDenoiser(Spec):
    """The papers' 1-D convolutional U over the latent."""

    kind: Literal["conv1d"] = "conv1d"
    starts_gaussian: ClassVar[bool] = False
    channels: tuple[PositiveInt, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels on the way down; the way up mirrors them."""
    kernel: OddSize = 7
    """Kernel size of every convolution; odd."""

    def build(self, latent_size: int, num_conditions: int) -> UNet1d:
        """The module for latents of ``latent_size``."""
        from bend_ray.generation.conv1d import UNet1d

        return UNet1d(latent_size, num_conditions, self.channels, self.kernel)


class ImportedDenoiser(Imported):
    """One's own: a function or class that gives a module ``(x_BZ, t_B, condition_B) -> (B, Z)``.

    Parameters of the function that are called ``latent_size`` and ``num_conditions`` are filled in.
    """

    starts_gaussian: ClassVar[bool] = False

    def build(self, latent_size: int, num_conditions: int) -> ConditionedDenoiser:
        """The module, or what makes it one of ours; ConfigError where predictions do not fit."""
        from bend_ray.generation.conditioning import ConditionedDenoiser, PlainDenoiser

        module = self.make(latent_size=latent_size, num_conditions=num_conditions)
        if isinstance(module, ConditionedDenoiser):
            return module
        return PlainDenoiser(module, latent_size, self.target)


Denoiser = Annotated[MlpDenoiser | ConvDenoiser | ImportedDenoiser, Field(discriminator="kind")]
