"""Autoencoders of parameters and denoisers of latents: specs that build modules.

``spec.build(num_features)`` is a module with ``encode`` and ``decode``. ``features`` says what an
autoencoder wants a classifier to be given as: ``principal``, its lossless principal coefficients
(at most one fewer than there are training models), or ``standardised``, its flattened parameters
with zero mean and each layer at unit scale.

``spec.build(latent_size, num_conditions)`` is a module that maps noisy latents ``(B, Z)``, times
``(B,)`` in [0, 1] and condition ids ``(B,)`` to predictions ``(B, Z)``.

To add one of either: one class, and its name in the union below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from bend_ray.imported import Imported
from bend_ray.process.lazy import torch
from bend_ray.spec import OddSize, Spec

if TYPE_CHECKING:
    from bend_ray.generation import networks
else:
    from bend_ray.process.lazy import LazyModule

    networks = LazyModule("bend_ray.generation.networks")


class PrincipalMlp(Spec):
    """Residual MLPs over the principal coefficients, for any number of parameters.

    Before it is trained a latent is the first coefficients themselves.
    """

    kind: Literal["principal_mlp"] = "principal_mlp"
    features: ClassVar[Literal["principal", "standardised"]] = "principal"
    latent_size: PositiveInt | None = None
    """Numbers in a latent; null for all coefficients, one fewer than training models.

    Fewer lose the spread of models: 16 do, for 128.
    """
    hidden: PositiveInt = 64
    """Hidden units of the encoder and of the decoder."""
    input_noise: NonNegativeFloat = 0.05
    """Noise on the features while training; more of it shrinks samples towards the mean."""
    latent_noise: NonNegativeFloat = 0.1
    """Noise on the latents while training, in their standard deviations."""

    def build(self, num_features: int) -> networks.MlpAutoencoder:
        """The module for vectors of ``num_features`` coefficients."""
        return networks.MlpAutoencoder(num_features, self.latent_size or num_features, self.hidden)


class Conv1d(Spec):
    """The papers' 1-D convolutional autoencoder over the flattened parameters."""

    kind: Literal["conv1d"] = "conv1d"
    features: ClassVar[Literal["principal", "standardised"]] = "standardised"
    latent_size: PositiveInt = 128
    """Numbers in a latent."""
    channels: tuple[PositiveInt, ...] = Field((64, 128, 256, 256, 32), min_length=1)
    """Channels of each stride-2 convolution, in order."""
    kernel: OddSize = 7
    """Kernel size of every convolution; odd."""
    input_noise: NonNegativeFloat = 1e-3
    """Noise on the parameters while training."""
    latent_noise: NonNegativeFloat = 0.1
    """Noise on the latents while training, in their standard deviations."""

    def build(self, num_features: int) -> networks.Conv1dAutoencoder:
        """The module for vectors of ``num_features`` parameters."""
        return networks.Conv1dAutoencoder(
            num_features, self.latent_size, self.channels, self.kernel
        )


class ImportedAutoencoder(Imported):
    """One's own: a function or class that gives a module with ``encode`` and ``decode``.

    Of principal coefficients ``(B, F)`` and latents ``(B, Z)``. Parameters of the function that are
    called ``num_features`` and ``latent_size`` are filled in.
    """

    features: ClassVar[Literal["principal", "standardised"]] = "principal"
    latent_size: PositiveInt = 120
    """Numbers in a latent."""
    input_noise: NonNegativeFloat = 0.05
    """Noise on the features while training."""
    latent_noise: NonNegativeFloat = 0.1
    """Noise on the latents while training, in their standard deviations."""

    def build(self, num_features: int) -> Any:
        """The module for vectors of ``num_features`` coefficients.

        ConfigError where what it encodes or decodes has another shape.
        """
        features, latents = (networks.ROWS, num_features), (networks.ROWS, self.latent_size)
        module = self.make(num_features=num_features, latent_size=self.latent_size)
        encode, decode = (f"{self.target}.{name}" for name in ("encode(x)", "decode(z)"))
        networks.check_gives(latents, lambda: module.encode(torch.zeros(features)), encode)
        networks.check_gives(features, lambda: module.decode(torch.zeros(latents)), decode)
        return module


Autoencoder = Annotated[PrincipalMlp | Conv1d | ImportedAutoencoder, Field(discriminator="kind")]


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

    def build(self, latent_size: int, num_conditions: int) -> networks.ModulatedMlp:
        """The module for latents of ``latent_size``."""
        return networks.ModulatedMlp(latent_size, num_conditions, self.hidden, self.blocks)


class ConvDenoiser(Spec):
    """The papers' 1-D convolutional U over the latent."""

    kind: Literal["conv1d"] = "conv1d"
    starts_gaussian: ClassVar[bool] = False
    channels: tuple[PositiveInt, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels on the way down; the way up mirrors them."""
    kernel: OddSize = 7
    """Kernel size of every convolution; odd."""

    def build(self, latent_size: int, num_conditions: int) -> networks.UNet1d:
        """The module for latents of ``latent_size``."""
        return networks.UNet1d(latent_size, num_conditions, self.channels, self.kernel)


class ImportedDenoiser(Imported):
    """One's own: a function or class that gives a module ``(x_BZ, t_B, condition_B) -> (B, Z)``.

    Parameters of the function that are called ``latent_size`` and ``num_conditions`` are filled in.
    """

    starts_gaussian: ClassVar[bool] = False

    def build(self, latent_size: int, num_conditions: int) -> networks.ConditionedDenoiser:
        """The module, or what makes it one of ours; ConfigError where predictions do not fit."""
        module = self.make(latent_size=latent_size, num_conditions=num_conditions)
        if isinstance(module, networks.ConditionedDenoiser):
            return module
        return networks.PlainDenoiser(module, latent_size, self.target)


Denoiser = Annotated[MlpDenoiser | ConvDenoiser | ImportedDenoiser, Field(discriminator="kind")]
