"""Tasks: what a network's outputs mean, how members become one answer, and how good that is.

A task is an axis, and nobody above asks which it is. A bag's answer is one row an example:
probabilities of C classes, or the means of T targets and then their variances. Members say
*ballots*, of which a bag's are the weighted mean, so that a bag that grows is a running mean.

Shape letters: E members, N examples, O outputs of a network, C classes, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PositiveFloat

from bend_ray.ensemble import metrics
from bend_ray.ensemble.conformal import IntervalCalibration, SetCalibration
from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.programs import LOG_VARIANCES, ClassesProgram, NumbersProgram
from bend_ray.ensemble.votes import PRIOR_EXAMPLES, apply_temperature, fit_temperature
from bend_ray.errors import DataError
from bend_ray.process.lazy import Tensor, torch
from bend_ray.spec import Spec

LEVELS_SHOWN = 20
"""Intervals of shares of 1 / 20, 2 / 20, ... are drawn."""
MOST_SHOWN = 300
"""Examples whose predictions are drawn one by one."""
LARGE = 0.1
"""Share of a member's errors, the largest, whose overlap with another's is looked at."""
LEAST_SCALE, MOST_SCALE = 1e-4, 1e4
"""Of variances: of targets that are hit exactly the likelihood has no bound."""


class Classification(ClassesProgram, Spec):
    """One class of several: the network gives a logit a class."""

    kind: Literal["classification"] = "classification"
    has_classes: ClassVar[bool] = True

    # As ``Regression`` says of each; the scale of an answer is its temperature.
    log_likelihoods: ClassVar = staticmethod(metrics.true_log_probs)
    reliability: ClassVar = staticmethod(metrics.reliability)
    rejection: ClassVar = staticmethod(metrics.rejection)
    scores: ClassVar = staticmethod(metrics.score)
    fit_scale: ClassVar = staticmethod(fit_temperature)
    scaled: ClassVar = staticmethod(apply_temperature)
    distances: ClassVar = staticmethod(metrics.pairwise_disagreement)
    disagreements: ClassVar = staticmethod(metrics.disagreements)

    def fitted(self, labels: Tensor) -> Self:
        """The task of such labels; classes need nothing."""
        return self

    def num_outputs(self, names: Sequence[str]) -> int:
        """O, where these are the classes."""
        return len(names)

    def targets(self, labels_N: Tensor) -> Tensor:
        """What ``loss`` compares with."""
        return labels_N

    def weights(
        self, targets_N: Tensor, asked: Literal["balanced"] | tuple[float, ...], outputs_NC: Tensor
    ) -> Tensor:
        """By which losses are multiplied, one a class; balanced: 1 on average over examples.

        DataError where there are not as many as classes.
        """
        classes = outputs_NC.shape[1]
        if asked == "balanced":
            counts_C = torch.bincount(targets_N, minlength=classes).clamp_min(1)
            return len(targets_N) / (classes * counts_C.to(outputs_NC))
        if len(asked) != classes:
            raise DataError(
                f"seeds.recipe.class_weights: expected {classes}, one a class, got {len(asked)}"
            )
        return outputs_NC.new_tensor(asked)

    def losses(
        self,
        outputs_NO: Tensor,
        targets_N: Tensor,
        label_smoothing: float,
        weights_C: Tensor | None = None,
    ) -> Tensor:
        """Of each example, ``(N,)``."""
        return torch.nn.functional.cross_entropy(
            *(outputs_NO, targets_N, weights_C),
            reduction="none",
            label_smoothing=label_smoothing,
        )

    def member_scores(
        self, outputs_ENO: Tensor, labels_N: Tensor, among_N: Tensor | None = None
    ) -> Tensor:
        """Accuracy, ``(E,)``: what ``score`` of a scikit-learn estimator is."""
        return metrics.member_accuracy(outputs_ENO, labels_N)

    def answers_of(self, outputs: int) -> int:
        """Numbers of an answer, of so many outputs."""
        return outputs

    def each(
        self, answers_NC: Tensor, labels_N: Tensor, among_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whether an answer is right, of which the mean is the accuracy, and its NLL: ``(N,)``."""
        return metrics.right_and_nats(answers_NC, labels_N)

    def ballots(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes, float64."""
        return torch.softmax(outputs.double(), dim=-1)

    def answers(self, ballots_NO: Tensor) -> Tensor:
        """They themselves."""
        return ballots_NO

    def shares(self, outputs_ENO: Tensor, labels_N: Tensor) -> Tensor:
        """Of ballots, what decides a bag's NLL: the labels' probabilities, ``(E, N, 1)``."""
        return self.log_likelihoods(outputs_ENO, labels_N).double().exp()[..., None]

    def nats(self, shares_ENV: Tensor, labels_N: Tensor) -> Tensor:
        """NLL ``(E, N)`` of who has these shares, or has them as the mean of its members."""
        return -shares_ENV[..., 0].clamp(min=metrics.SMALLEST_PROBABILITY).log()

    def chance(self, labels_N: Tensor) -> tuple[float, float]:
        """Accuracy of whoever always says the most frequent class, and its standard error."""
        share = labels_N.bincount().max().item() / len(labels_N)
        return share, math.sqrt(share * (1 - share) / len(labels_N))

    def predictions(self, outputs_ENO: Tensor) -> Tensor:
        """Each member's class of each example, ``(E, N)``, in as few bytes as classes need."""
        dtype = torch.uint8 if outputs_ENO.shape[-1] <= 2**8 else torch.int32
        return outputs_ENO.argmax(dim=-1).to(dtype)

    def calibration(self, answers_NC: Tensor, labels_N: Tensor) -> SetCalibration:
        """What answers about examples kept back promise of others."""
        return SetCalibration.of(answers_NC.numpy(), labels_N.numpy())

    def uncertainties(
        self, predictions: Predictions, weight_E: Tensor, answers_NC: Tensor
    ) -> dict[str, NDArray[Any]]:
        """Scores ``(N,)``, higher where a bag is less sure, by its answers and its members' own.

        By name: one minus the highest probability; entropy; mutual information of class and member
        (members' own softmaxes); energy, the members' mean (Liu et al., 2020).
        """
        share_E, found = weight_E / weight_E.sum(), []
        for logits_ENC, _ in predictions.blocks():
            logs_ENC = torch.log_softmax(logits_ENC.double(), dim=-1)
            mean_NC = torch.einsum("e,enc->nc", share_E, logs_ENC.exp())
            own_EN = torch.special.entr(logs_ENC.exp()).sum(dim=-1)
            information_N = torch.special.entr(mean_NC).sum(dim=-1) - share_E @ own_EN
            energy_N = -(share_E @ torch.logsumexp(logits_ENC.double(), dim=-1))
            found.append(torch.stack([information_N, energy_N]))
        information_N, energy_N = torch.cat(found, dim=1)
        answers_NC = answers_NC.double()
        scores = {
            "probability": 1 - answers_NC.max(dim=1).values,
            "entropy": torch.special.entr(answers_NC).sum(dim=1),
            "information": information_N,
            "energy": energy_N,
        }
        return {name: values.numpy() for name, values in scores.items()}

    def shown(self, answers_NC: Tensor, labels_N: Tensor) -> dict[str, list[float]] | None:
        """What a report draws of single answers; nothing of classes."""
        return None

    def diversity(self, predictions_EN: Tensor, labels_N: Tensor) -> dict[str, float]:
        """Mean over pairs of members."""
        return {
            "disagreement": self.disagreements(predictions_EN).mean().item(),
            "error_iou": metrics.error_iou(predictions_EN != labels_N),
            "q_statistic": metrics.q_statistic(predictions_EN != labels_N),
        }


class Regression(NumbersProgram, Spec):
    """Numbers: the network gives a mean a target, and with a head of variance its log variance.

    Networks learn standardised targets; answers and scores are in the targets' own units.
    Source: Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using
    deep ensembles", 2017: the bag has the mean and the variance of the members' mixture.
    """

    kind: Literal["regression"] = "regression"
    has_classes: ClassVar[bool] = False
    variance: Literal["head", "fitted"] = "head"
    """By a second output a target, or one for all, fitted on validation examples."""
    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Of a head of variance: the share by which examples of large variance count as much as others.

    0 is the likelihood, which neglects what is hard; 1 is the squared error.
    Source: Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", 2022.
    """
    mean: tuple[FiniteFloat, ...] = ()
    """Of each target over the training part; found."""
    std: tuple[PositiveFloat, ...] = ()
    """Its standard deviation; found."""

    def fitted(self, labels_NT: Tensor) -> Self:
        """The task of such targets, unless it has their units already."""
        if self.mean:
            return self
        labels_NT = labels_NT.double()
        peak_T = labels_NT.abs().amax(dim=0)  # by which the squares of tiny targets are none
        peak_T = torch.where(peak_T > 0, peak_T, 1.0)
        std_T, mean_T = (m * peak_T for m in torch.std_mean(labels_NT / peak_T, 0, correction=0))
        # A target that never varies is its mean, about.
        std_T = torch.where(std_T > 1e-12 * peak_T, std_T, 1e-3 * peak_T)
        found = {"mean": tuple(mean_T.tolist()), "std": tuple(std_T.tolist())}
        return self.model_copy(update=found)

    def num_outputs(self, names: Sequence[str]) -> int:
        """O, where these are the targets."""
        return len(names) * (2 if self.variance == "head" else 1)

    def targets(self, labels_NT: Tensor) -> Tensor:
        """Standardised, float32."""
        return ((labels_NT - self._units(self.mean, labels_NT)) / self._std(labels_NT)).float()

    def weights(self, targets_NT: Tensor, asked: object, outputs_NO: Tensor) -> Tensor:
        """None are to be had: a DataError."""
        raise DataError("seeds.recipe.class_weights: expected none, as the task is a regression")

    def losses(
        self,
        outputs_NO: Tensor,
        targets_NT: Tensor,
        label_smoothing: float,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Negative log likelihood without its constant, ``(N,)``; numbers are not smoothed."""
        mean, log_variance = self._split(outputs_NO)
        error = (targets_NT - mean) ** 2
        if self.variance == "fitted":
            return 0.5 * error.sum(dim=-1)
        weight = torch.exp(self.beta * log_variance.detach())
        return 0.5 * (weight * (error * torch.exp(-log_variance) + log_variance)).sum(dim=-1)

    def log_likelihoods(self, outputs_ENO: Tensor, labels_NT: Tensor) -> Tensor:
        """Of the labels, ``(E, N)`` float64, in nats; nan of a member that diverged."""
        mean, variance = self._moments(outputs_ENO)
        return metrics.log_density(mean, variance, labels_NT).sum(dim=-1)

    def member_scores(
        self, outputs_ENO: Tensor, labels_NT: Tensor, among_NT: Tensor | None = None
    ) -> Tensor:
        """R^2, mean over targets, ``(E,)``: what ``score`` of a scikit-learn estimator is.

        Of examples that are some of others, a share of theirs.
        """
        among_NT = labels_NT if among_NT is None else among_NT
        return _r2(self._moments(outputs_ENO)[0], labels_NT, among_NT).mean(dim=1)

    def answers_of(self, outputs: int) -> int:
        """Numbers of an answer, of so many outputs."""
        return outputs if self.variance == "head" else 2 * outputs

    def each(
        self, answers_NO: Tensor, labels_NT: Tensor, among_NT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of each example what has R^2 as its mean over all ``among``, and its NLL: ``(N,)``."""
        mean, variance = answers_NO.chunk(2, dim=-1)
        among_NT = labels_NT if among_NT is None else among_NT
        nats_N = -metrics.log_density(mean, variance, labels_NT).sum(dim=-1)
        return _r2(mean, labels_NT, among_NT), nats_N

    def reliability(self, answers_NO: Tensor, labels_NT: Tensor) -> dict[str, list[float]]:
        """Of central intervals: which share they should hold, and which they do."""
        mean, variance = answers_NO.chunk(2, dim=-1)
        z = metrics.pit(mean, variance, labels_NT).flatten()
        shares = [level / LEVELS_SHOWN for level in range(1, LEVELS_SHOWN)]
        inside = [((z - 0.5).abs() <= share / 2).double().mean().item() for share in shares]
        return {"confidence": shares, "accuracy": inside, "count": [len(z)] * len(shares)}

    def rejection(self, answers_NO: Tensor, labels_NT: Tensor) -> dict[str, list[float]]:
        """R^2 where the predictions of largest variance are refused."""
        variance = answers_NO.chunk(2, dim=-1)[1] / self._std(answers_NO) ** 2
        return metrics.rejected(variance.sum(dim=-1), self.each(answers_NO, labels_NT)[0])

    def ballots(self, outputs: Tensor) -> Tensor:
        """First and second moments, whose means over members are the mixture's."""
        mean, variance = self._split(outputs.double())
        variance = torch.exp(variance)
        return torch.cat([mean, variance + mean**2], dim=-1)

    def shares(self, outputs_ENO: Tensor, labels_NT: Tensor) -> Tensor:
        """All of the ballots, ``(E, N, 2 T)``, as a bag has the moments of its mixture."""
        return self.ballots(outputs_ENO)

    def nats(self, shares_ENV: Tensor, labels_NT: Tensor) -> Tensor:
        """NLL ``(E, N)`` of who has these moments."""
        mean, variance = self.answers(shares_ENV).chunk(2, dim=-1)
        return -metrics.log_density(mean, variance, labels_NT).sum(dim=-1)

    def answers(self, ballots_NO: Tensor) -> Tensor:
        """Means and variances, in the targets' units, ``(N, 2 T)``."""
        mean, second = ballots_NO.chunk(2, dim=-1)
        variance = (second - mean**2).clamp(min=metrics.SMALLEST_VARIANCE)
        std = self._std(mean)
        return torch.cat([mean * std + self._units(self.mean, mean), variance * std**2], dim=-1)

    def fit_scale(self, answers_NO: Tensor, labels_NT: Tensor, bags: int = 1) -> float:
        """The factor of all variances at which the NLL is least: the mean squared z.

        As of a temperature, a few examples more say that it is 1.
        """
        mean, variance = answers_NO.chunk(2, dim=-1)
        squares, prior = (labels_NT - mean) ** 2 / variance, PRIOR_EXAMPLES * bags
        factor = (squares.sum().item() + prior) / (squares.numel() + prior)
        return min(max(factor, LEAST_SCALE), MOST_SCALE)

    def scaled(self, answers_NO: Tensor, scale: float) -> Tensor:
        """With variances times a factor."""
        mean, variance = answers_NO.chunk(2, dim=-1)
        return torch.cat([mean, variance * scale], dim=-1)

    def scores(self, answers_NO: Tensor, labels_NT: Tensor) -> dict[str, Any]:
        """R^2 in accuracy's place, NLL, RMSE, CRPS, intervals and the PIT's error."""
        mean, variance = answers_NO.chunk(2, dim=-1)
        coverage, width = metrics.intervals(mean, variance, labels_NT)
        return {
            "nll": -metrics.log_density(mean, variance, labels_NT).sum(dim=-1).mean().item(),
            "rmse": ((labels_NT - mean) ** 2).mean(dim=0).sqrt().mean().item(),
            "crps": metrics.crps(mean, variance, labels_NT),
            "accuracy": _r2(mean, labels_NT, labels_NT).mean().item(),
            "pit_error": metrics.pit_error(mean, variance, labels_NT),
            "coverage": coverage,
            "width": width,
        }

    def chance(self, labels_NT: Tensor) -> tuple[float, float]:
        """R^2 of the mean of all, and about its standard error."""
        return 0.0, 1 / math.sqrt(len(labels_NT))

    def predictions(self, outputs_ENO: Tensor) -> Tensor:
        """Each member's means of each example, ``(E, N, T)``."""
        return self._moments(outputs_ENO)[0]

    def distances(self, one_ENT: Tensor, other_MNT: Tensor) -> Tensor:
        """Root of the mean squared difference, in targets' deviations, ``(E, M)``."""
        one, other = (each / self._std(each) for each in (one_ENT.double(), other_MNT.double()))
        return torch.cdist(one.flatten(1), other.flatten(1)) / math.sqrt(one[0].numel())

    def disagreements(self, predictions_ENT: Tensor) -> Tensor:
        """Each member's mean distance to the others, ``(E,)``; nan of one alone."""
        others = len(predictions_ENT) - 1
        return self.distances(predictions_ENT, predictions_ENT).sum(dim=1) / others

    def calibration(self, answers_NO: Tensor, labels_NT: Tensor) -> IntervalCalibration:
        """What answers about examples kept back promise of others."""
        return IntervalCalibration.of(answers_NO.numpy(), labels_NT.numpy())

    def uncertainties(
        self, predictions: Predictions, weight_E: Tensor, answers_NO: Tensor
    ) -> dict[str, NDArray[Any]]:
        """Entropy of what is predicted ``(N,)``, in nats, mean over targets."""
        variance = answers_NO.chunk(2, dim=-1)[1]
        entropy_N = 0.5 * (2 * math.pi * math.e * variance).log().mean(dim=-1)
        return {"entropy": entropy_N.numpy()}

    def shown(self, answers_NO: Tensor, labels_NT: Tensor) -> dict[str, list[float]] | None:
        """Mean, deviation and truth of the first target, of evenly spaced examples."""
        step = -(-len(labels_NT) // MOST_SHOWN)
        mean, variance = answers_NO[::step].chunk(2, dim=-1)
        columns = {"mean": mean, "std": variance.sqrt(), "target": labels_NT[::step]}
        return {name: values[:, 0].tolist() for name, values in columns.items()}

    def diversity(self, predictions_ENT: Tensor, labels_NT: Tensor) -> dict[str, float]:
        """Mean over pairs of members."""
        first, second = torch.triu_indices(len(predictions_ENT), len(predictions_ENT), 1)
        errors_EN = ((predictions_ENT - labels_NT) / self._std(labels_NT)).flatten(1)
        least_E1 = errors_EN.abs().quantile(1 - LARGE, dim=1, keepdim=True)
        return {
            "disagreement": self.disagreements(predictions_ENT).mean().item(),
            "error_iou": metrics.error_iou(errors_EN.abs() > least_E1),
            "correlation": torch.corrcoef(errors_EN)[first, second].mean().item(),
        }

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances of standardised targets."""
        if self.variance == "fitted":
            return outputs, torch.zeros_like(outputs)
        mean, log_variance = outputs.chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances in the targets' units, float64."""
        mean, log_variance = self._split(outputs.double())
        std = self._std(mean)
        return mean * std + self._units(self.mean, mean), torch.exp(log_variance) * std**2

    def _std(self, like: Tensor) -> Tensor:
        return self._units(self.std, like)

    def _units(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device)


def _r2(mean_NT: Tensor, labels_NT: Tensor, among_NT: Tensor) -> Tensor:
    """``(..., N)``, of which the mean over all of ``among_NT`` is ``sklearn.metrics.r2_score``.

    But 0 of a target that never varies and is not hit.
    """
    spread_T = ((among_NT - among_NT.mean(dim=0)) ** 2).mean(dim=0)
    error_NT = (labels_NT - mean_NT) ** 2
    hit_NT = (error_NT == 0).to(error_NT)
    return torch.where(spread_T > 0, 1 - error_NT / spread_T, hit_NT).mean(dim=-1)


Task = Annotated[Classification | Regression, Field(discriminator="kind")]
