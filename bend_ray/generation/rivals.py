"""Rivals: what else could be done with the same trained population, without a learnt generator.

``Choosing`` ones take models that were trained. ``Drawing`` ones make parameters ``(N, P)`` of the
training members alone, and say of which trunk each is ``(N,)``, -1 where of no one trunk. To add a
rival: one class of either kind, and its name in the union at the bottom.

Shape letters: K training members, N drawn, P parameters, T trunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bend_ray.errors import ConfigError
from bend_ray.imported import Imported
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from torch import Generator, Tensor


def trunk_means(theta_KP: Tensor, trunks_K: Tensor) -> tuple[Tensor, ...]:
    """The mean of each trunk's members ``(T, P)`` and each member's row in it ``(K,)``."""
    ids_T, row_K = torch.unique(trunks_K, return_inverse=True)
    sums_TP = torch.zeros(len(ids_T), theta_KP.shape[1]).index_add_(0, row_K, theta_KP)
    return sums_TP / row_K.bincount()[:, None], row_K


def round_robin(trunks_K: Tensor, count: int) -> Tensor:
    """``count`` members ``(N,)``, one of every trunk in turn; from the start again when out."""
    seen: dict[int, int] = {}
    turn = []
    for trunk in trunks_K.tolist():
        seen[trunk] = seen.get(trunk, -1) + 1
        turn.append(seen[trunk])
    order = torch.argsort(torch.tensor(turn), stable=True)
    return order.repeat(-(-count // len(order)))[:count]


Drawn: TypeAlias = "tuple[Tensor, Tensor]"
"""Parameters ``(N, P)`` and trunks ``(N,)``."""


def _in_turn(trunks_K: Tensor, count: int) -> Tensor:
    """``count`` trunks, one after another."""
    ids_T: Tensor = torch.unique(trunks_K)
    return ids_T[torch.arange(count) % len(ids_T)]


class _Rival(Spec):
    """What the bag is compared with."""

    kind: str
    needs_all: ClassVar[bool] = False
    """Whether all of the population must be trained for it, or its own members alone."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.kind


class Choosing(_Rival):
    """A bag of models that were trained anyway, or for the comparison."""

    among: ClassVar[Literal["originals", "ordinary"]] = "originals"
    """The training members, or the ordinary trainings."""

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """Models that are made for the comparison and asked: none."""
        return 0

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """Positions of members, in voting order, to be compared with a bag of ``count``.

        ``val_nll_K`` is the validation NLL, in nats, of the models among which it chooses.
        """
        raise NotImplementedError


class OriginalsBag(Choosing):
    """As many trained members as the bag has, the trunks in turn."""

    kind: Literal["originals_bag"] = "originals_bag"

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """Positions of the members, in voting order."""
        return round_robin(trunks_K, min(count, len(trunks_K))).tolist()


class TrunkBag(Choosing):
    """One trained member of each trunk."""

    kind: Literal["trunk_bag"] = "trunk_bag"

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """Positions of the members, in voting order; whatever ``count``."""
        return round_robin(trunks_K, len(torch.unique(trunks_K))).tolist()


class BestOriginal(Choosing):
    """The single trained member of lowest validation NLL."""

    kind: Literal["best_original"] = "best_original"
    needs_all: ClassVar[bool] = True

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """Its position."""
        return [int(val_nll_K.argmin())]


class DeepEnsemble(Choosing):
    """Ordinary independent trainings, as many as the bag has; trained for the comparison.

    Their cost is shown, as is how many of them our own cost would have paid for.
    """

    kind: Literal["deep_ensemble"] = "deep_ensemble"
    among: ClassVar[Literal["originals", "ordinary"]] = "ordinary"
    size: PositiveInt | None = None
    """Members; null for as many as the bag has."""

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """The first of them."""
        return list(range(min(count, len(trunks_K))))


class Drawing(_Rival):
    """A bag of models that are drawn around the training members."""

    needs_all: ClassVar[bool] = True

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """Models that are made for the comparison and asked."""
        return count

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """Draw about ``count`` models from the training members and their trunks."""
        raise NotImplementedError


class WeightAverage(Drawing):
    """One model: the mean of all training members' parameters."""

    kind: Literal["weight_average"] = "weight_average"

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """One row, whatever ``count``."""
        ids_T = torch.unique(trunks_K)
        trunk = ids_T if len(ids_T) == 1 else torch.tensor([-1])
        return theta_KP.mean(dim=0, keepdim=True), trunk

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """One."""
        return 1


class TrunkAverages(Drawing):
    """One model a trunk: the mean of its members' parameters."""

    kind: Literal["trunk_averages"] = "trunk_averages"

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """One row a trunk, at most ``count``."""
        means_TP, _ = trunk_means(theta_KP, trunks_K)
        return means_TP[:count], torch.unique(trunks_K)[:count]

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """One a trunk."""
        return min(count, num_trunks)


class Noise(Drawing):
    """Training members with Gaussian noise on every parameter."""

    kind: Literal["noise"] = "noise"
    scale: NonNegativeFloat = 0.1
    """Standard deviation of the noise, in that of the member's own parameters."""

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """Members of every trunk in turn, disturbed."""
        chosen_N = round_robin(trunks_K, count)
        members_NP = theta_KP[chosen_N]
        noise_NP = torch.randn(members_NP.shape, generator=generator)
        std_N1 = members_NP.std(dim=1, keepdim=True)
        return members_NP + self.scale * std_N1 * noise_NP, trunks_K[chosen_N]


class Gaussian(Drawing):
    """A Gaussian around each trunk's mean, with the residuals' covariance of all trunks.

    A draw is a trunk's mean plus a random combination of all members' residuals: exactly the
    Gaussian of the pooled residuals, without forming a P x P matrix.
    """

    kind: Literal["gaussian"] = "gaussian"
    scale: PositiveFloat = 1.0
    """Multiplier of the standard deviation."""

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """Trunks in turn."""
        means_TP, row_K = trunk_means(theta_KP, trunks_K)
        degrees = max(1, len(theta_KP) - len(means_TP))
        mix_NK = torch.randn(count, len(theta_KP), generator=generator) / degrees**0.5
        residuals_NP: Tensor = mix_NK @ (theta_KP - means_TP[row_K])
        drawn_NP = means_TP[torch.arange(count) % len(means_TP)]
        return drawn_NP + self.scale * residuals_NP, _in_turn(trunks_K, count)


class MultiSwag(Drawing):
    """SWAG in every trunk: half diagonal, half low-rank Gaussian around the trunk's mean.

    Source: Maddox et al. 2019 (arXiv 1902.02476), equation 1; Wilson & Izmailov 2020 for many
    basins. With one trunk it is SWAG. The members of a trunk stand for SGD's iterates.
    """

    kind: Literal["multiswag"] = "multiswag"
    scale: PositiveFloat = 0.5
    """Multiplier of the standard deviation."""

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """Trunks in turn."""
        means_TP, row_K = trunk_means(theta_KP, trunks_K)
        draws = []
        for n in range(count):
            trunk = n % len(means_TP)
            residuals_RP = theta_KP[row_K == trunk] - means_TP[trunk]
            degrees = max(1, len(residuals_RP) - 1)
            std_P = (residuals_RP.square().sum(dim=0) / degrees).sqrt()
            diagonal_P = std_P * torch.randn(len(std_P), generator=generator)
            mix_R = torch.randn(len(residuals_RP), generator=generator) / degrees**0.5
            spread_P = (diagonal_P + mix_R @ residuals_RP) / 2**0.5
            draws.append(means_TP[trunk] + self.scale * spread_P)
        return torch.stack(draws), _in_turn(trunks_K, count)


class ImportedRival(Imported, Drawing):
    """One's own: a function of members ``(K, P)``, their trunks ``(K,)``, a number and a generator.

    It gives models ``(N, P)`` and the trunk of each ``(N,)``, -1 for none.
    """

    kind: Literal["imported"] = "imported"

    @property
    def name(self) -> str:
        """The function's."""
        return self.target.rpartition(":")[2]

    def draw(self, theta_KP: Tensor, trunks_K: Tensor, count: int, generator: Generator) -> Drawn:
        """What the function gives; ConfigError where models or trunks have other shapes."""
        drawn_NP, trunks_N = self.call(theta_KP, trunks_K, count, generator, **self.arguments)
        expected = (len(trunks_N), theta_KP.shape[1])
        if not len(trunks_N) or drawn_NP.shape != expected or trunks_N.ndim != 1:
            raise ConfigError(
                f"{self.target}: expected models (N, {theta_KP.shape[1]}) and trunks (N,), got "
                f"{tuple(drawn_NP.shape)} and {tuple(trunks_N.shape)}"
            )
        return drawn_NP, trunks_N


Rival = Annotated[
    OriginalsBag
    | TrunkBag
    | BestOriginal
    | DeepEnsemble
    | WeightAverage
    | TrunkAverages
    | Noise
    | Gaussian
    | MultiSwag
    | ImportedRival,
    Field(discriminator="kind"),
]
