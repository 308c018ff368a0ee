"""Rivals: what else could be done with the same trained population, without a learnt generator.

``Choosing`` ones take models that were trained. ``Drawing`` ones make parameters ``(N, P)`` of the
training members alone, which they read in blocks of columns, and say of which trunk each is
``(N,)``, -1 where of no one trunk. A model depends on its place alone: whoever needs fewer has the
first. To add a rival: one class of either kind, and its name in the union at the bottom.

Shape letters: K training members, N drawn, P parameters, T trunks, B columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bend_ray.errors import ConfigError
from bend_ray.imported import Imported
from bend_ray.process.lazy import Tensor, torch
from bend_ray.process.matrix import Matrix, column_slices
from bend_ray.spec import Spec


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


@dataclass(frozen=True)
class Trained:
    """What a rival draws from: the training members, read a block at a time, and their trunks.

    There are to be ``count`` models at most; ``stream`` gives the generator of that at a place.
    """

    members_KP: Matrix
    trunks_K: Tensor
    count: int
    stream: Callable[[int], torch.Generator]


Drawn: TypeAlias = "tuple[Tensor, Tensor]"
"""Parameters ``(N, P)`` and trunks ``(N,)``."""


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
    """Ordinary independent trainings, trained for the comparison; as many vote as the bag has.

    Their cost is shown, as is how many of them our own cost would have paid for.
    """

    kind: Literal["deep_ensemble"] = "deep_ensemble"
    among: ClassVar[Literal["originals", "ordinary"]] = "ordinary"
    size: PositiveInt | None = None
    """Members that are trained; null for as many as classifiers are drawn."""

    def choose(self, trunks_K: Tensor, val_nll_K: Tensor, count: int) -> list[int]:
        """The first of them."""
        return list(range(min(count, len(trunks_K))))


class Drawing(_Rival):
    """A bag of models that are drawn around the training members."""

    needs_all: ClassVar[bool] = True

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """Models that are made for the comparison and asked."""
        return count

    def draw(self, trained: Trained, models: range) -> Drawn:
        """Draw the models at some places."""
        raise NotImplementedError


class WeightAverage(Drawing):
    """One model: the mean of all training members' parameters."""

    kind: Literal["weight_average"] = "weight_average"

    def draw(self, trained: Trained, models: range) -> Drawn:
        """One row, whatever ``count``."""
        ids_T = torch.unique(trained.trunks_K)
        trunk = ids_T if len(ids_T) == 1 else torch.tensor([-1])
        blocks = column_slices(trained.members_KP.shape[1], len(trained.members_KP))
        return torch.cat([trained.members_KP[:, own].mean(dim=0) for own in blocks])[None], trunk

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """One."""
        return 1


class TrunkAverages(Drawing):
    """One model a trunk: the mean of its members' parameters."""

    kind: Literal["trunk_averages"] = "trunk_averages"

    def draw(self, trained: Trained, models: range) -> Drawn:
        """One row a trunk, at most ``count``."""
        wanted = torch.unique(trained.trunks_K)[: trained.count][models.start : models.stop]
        own_R = torch.isin(trained.trunks_K, wanted).nonzero().flatten()
        drawn_NP = torch.empty(len(wanted), trained.members_KP.shape[1])
        for block in column_slices(trained.members_KP.shape[1], len(own_R)):
            drawn_NP[:, block], _ = trunk_means(
                trained.members_KP[own_R, block], trained.trunks_K[own_R]
            )
        return drawn_NP, wanted

    def num_drawn(self, count: int, num_trunks: int) -> int:
        """One a trunk."""
        return min(count, num_trunks)


class Noise(Drawing):
    """Training members with Gaussian noise on every parameter."""

    kind: Literal["noise"] = "noise"
    scale: NonNegativeFloat = 0.1
    """Standard deviation of the noise, in that of the member's own parameters."""

    def draw(self, trained: Trained, models: range) -> Drawn:
        """Members of every trunk in turn, disturbed."""
        chosen_N = round_robin(trained.trunks_K, trained.count)[models.start : models.stop]
        drawn_NP = trained.members_KP[chosen_N, :].clone()
        for index, drawn_P in zip(models, drawn_NP, strict=True):
            noise_P = torch.randn(len(drawn_P), generator=trained.stream(index))
            drawn_P += noise_P.mul_(self.scale * drawn_P.std())
        return drawn_NP, trained.trunks_K[chosen_N]


class Gaussian(Drawing):
    """A Gaussian around each trunk's mean, with the residuals' covariance of all trunks.

    A draw is a trunk's mean plus a random combination of all members' residuals: exactly the
    Gaussian of the pooled residuals, without forming a P x P matrix.
    """

    kind: Literal["gaussian"] = "gaussian"
    scale: PositiveFloat = 1.0
    """Multiplier of the standard deviation."""

    def draw(self, trained: Trained, models: range) -> Drawn:
        """Trunks in turn."""
        ids_T, num_members = torch.unique(trained.trunks_K), len(trained.members_KP)
        turn_N = torch.tensor(models) % len(ids_T)
        degrees = max(1, num_members - len(ids_T))
        mix_NK = torch.stack(
            [torch.randn(num_members, generator=trained.stream(n)) for n in models]
        )
        mix_NK *= self.scale / degrees**0.5
        drawn_NP = torch.empty(len(models), trained.members_KP.shape[1])
        for block in column_slices(trained.members_KP.shape[1], num_members):
            members_KB = trained.members_KP[:, block]
            means_TB, row_K = trunk_means(members_KB, trained.trunks_K)
            drawn_NP[:, block] = means_TB[turn_N] + mix_NK @ (members_KB - means_TB[row_K])
        return drawn_NP, ids_T[turn_N]


class MultiSwag(Drawing):
    """SWAG in every trunk: half diagonal, half low-rank Gaussian around the trunk's mean.

    Source: Maddox et al. 2019 (arXiv 1902.02476), equation 1; Wilson & Izmailov 2020 for many
    basins. With one trunk it is SWAG. The members of a trunk stand for SGD's iterates.
    """

    kind: Literal["multiswag"] = "multiswag"
    scale: PositiveFloat = 0.5
    """Multiplier of the standard deviation."""

    def draw(self, trained: Trained, models: range) -> Drawn:
        """Trunks in turn."""
        ids_T = torch.unique(trained.trunks_K)
        turn_N = torch.tensor(models) % len(ids_T)
        generators = [trained.stream(index) for index in models]
        num_parameters = trained.members_KP.shape[1]
        drawn_NP = torch.stack([torch.randn(num_parameters, generator=g) for g in generators])
        for trunk in torch.unique(turn_N):
            own_R = (trained.trunks_K == ids_T[trunk]).nonzero().flatten()
            rows_N = (turn_N == trunk).nonzero().flatten()
            degrees = max(1, len(own_R) - 1)
            mix_NR = torch.stack([torch.randn(len(own_R), generator=generators[n]) for n in rows_N])
            for block in column_slices(num_parameters, len(own_R) + len(rows_N)):
                members_RB = trained.members_KP[own_R, block]
                mean_B = members_RB.mean(dim=0)
                residuals_RB = members_RB - mean_B
                std_B = (residuals_RB.square().sum(dim=0) / degrees).sqrt()
                spread_NB = std_B * drawn_NP[rows_N, block]
                spread_NB += mix_NR @ residuals_RB / degrees**0.5
                drawn_NP[rows_N, block] = mean_B + self.scale / 2**0.5 * spread_NB
        return drawn_NP, ids_T[turn_N]


class ImportedRival(Imported, Drawing):
    """One's own: a function of members ``(K, P)``, their trunks ``(K,)``, a number and a generator.

    It gives models ``(N, P)`` and the trunk of each ``(N,)``, -1 for none. All members are in
    memory, and it is called for every 256 MiB of the models it gives.
    """

    kind: Literal["imported"] = "imported"

    @property
    def name(self) -> str:
        """The function's."""
        return self.target.rpartition(":")[2]

    def draw(self, trained: Trained, models: range) -> Drawn:
        """What the function gives; ConfigError where models or trunks have other shapes."""
        given = (trained.members_KP[:, :], trained.trunks_K, trained.count, trained.stream(0))
        drawn_NP, trunks_N = self.call(*given, **self.arguments)
        expected = (len(trunks_N), trained.members_KP.shape[1])
        if not len(trunks_N) or drawn_NP.shape != expected or trunks_N.ndim != 1:
            raise ConfigError(
                f"{self.target}: expected models (N, {expected[1]}) and trunks (N,), got "
                f"{tuple(drawn_NP.shape)} and {tuple(trunks_N.shape)}"
            )
        own = slice(models.start, models.stop)
        return drawn_NP[own], trunks_N[own]


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
