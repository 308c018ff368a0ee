"""The default networks of the weight-space models: residual MLPs over vectors.

Shape letters: B batch, F features, Z latent, H hidden.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from bend_ray.generation.conditioning import ConditionedDenoiser, TimeEmbedding


class ResidualMlp(nn.Module):
    """A linear map plus an MLP with one hidden layer.

    It starts as the map that keeps the first numbers of a vector: between principal coefficients
    and as many latents it loses nothing, between fewer as little as a linear map can.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        last = nn.Linear(hidden, outputs, bias=False)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        y: Tensor = self.linear(x) + self.mlp(x)
        return y


class MlpAutoencoder(nn.Module):
    """Features to latents and back, one residual MLP each way."""

    def __init__(self, num_features: int, latent_size: int, hidden: int) -> None:
        super().__init__()
        self.encoder = ResidualMlp(num_features, hidden, latent_size)
        self.decoder = ResidualMlp(latent_size, hidden, num_features)

    def encode(self, x_BF: Tensor) -> Tensor:
        """Latents ``(B, Z)``."""
        z_BZ: Tensor = self.encoder(x_BF)
        return z_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Features ``(B, F)``."""
        x_BF: Tensor = self.decoder(z_BZ)
        return x_BF


class ModulatedBlock(nn.Module):
    """Residual block whose normalised input is scaled and shifted by the time and condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden)
        )

    def modulation(self, embedded_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and shift ``(B, H)`` by the embedding."""
        scale_BH, shift_BH = self.modulate(embedded_BH).chunk(2, dim=1)
        return 1 + scale_BH, shift_BH

    def forward(self, h_BH: Tensor, factor_BH: Tensor, shift_BH: Tensor) -> Tensor:
        """Hidden state ``(B, H)`` to the next one."""
        y_BH: Tensor = h_BH + self.mlp(self.norm(h_BH) * factor_BH + shift_BH)
        return y_BH


class ModulatedMlp(ConditionedDenoiser):
    """What the process predicts, from a noisy latent, its time and its condition.

    Starts as the exact denoiser of unit Gaussian latents.
    """

    learns_residual: ClassVar[bool] = True

    def __init__(self, latent_size: int, num_conditions: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(hidden)
        self.condition = nn.Embedding(num_conditions, hidden)
        self.project_in = nn.Linear(latent_size, hidden)
        self.blocks = nn.ModuleList(ModulatedBlock(hidden) for _ in range(blocks))
        self.project_out = nn.Linear(hidden, latent_size)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        """Embedding, then each block's factor and shift."""
        embedded_BH = self.time(t_B) + self.condition(condition_B)
        modulations: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, ModulatedBlock)
            modulations += block.modulation(embedded_BH)
        return embedded_BH, *modulations

    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predictions ``(B, Z)`` of rows with this context."""
        embedded_BH, *modulations = context
        h_BH = self.project_in(x_BZ) + embedded_BH
        for block, factor_BH, shift_BH in zip(
            self.blocks, modulations[::2], modulations[1::2], strict=True
        ):
            h_BH = block(h_BH, factor_BH, shift_BH)
        y_BZ: Tensor = self.project_out(nn.functional.silu(h_BH))
        return y_BZ
