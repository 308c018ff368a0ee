"""Elections: who is chosen is who lowers the bag's NLL, found here by trying all."""

from itertools import combinations_with_replacement

import pytest
import torch

from bend_ray.ensemble.bagging import greedy
from bend_ray.networks.protocols import Varied
from bend_ray.populations.contest import Chosen
from bend_ray.tasks import Classification, Regression, Task


def standing(task: Task, outputs_ENO: torch.Tensor, labels_N: torch.Tensor) -> Chosen:
    count = torch.arange(len(outputs_ENO))
    theta = count[:, None, None].float()
    return Chosen(theta, task.shares(outputs_ENO, labels_N), count, 10 * count, 0 * count)


def tasks() -> list[tuple[Task, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 40, 4, generator=generator)
    numbers = torch.randn(40, 2, generator=generator).double()
    return [
        (Classification(), outputs, torch.arange(40) % 4),
        (Regression().fitted(numbers), outputs, numbers),
    ]


@pytest.mark.parametrize(("task", "outputs_ENO", "labels_N"), tasks(), ids=["classes", "numbers"])
def test_a_place_goes_to_who_lowers_the_nll_of_the_vote_most(
    task: Task, outputs_ENO: torch.Tensor, labels_N: torch.Tensor
) -> None:
    def nll(members: tuple[int, ...]) -> float:
        ballots = task.ballots(outputs_ENO[list(members)]).mean(dim=0)
        return float(task.each(task.answers(ballots), labels_N)[1].mean())

    shares = task.shares(outputs_ENO, labels_N)
    chosen: tuple[int, ...] = ()
    for _ in range(6):
        chosen = min(((*chosen, member) for member in range(5)), key=nll)
    assert greedy(task, shares, labels_N, 6, None) == list(chosen)
    elected = standing(task, outputs_ENO, labels_N).elected(task, labels_N, 6, False, [])
    votes = torch.bincount(torch.tensor(chosen), minlength=5)
    assert elected.candidate_B.tolist() == votes.nonzero().flatten().tolist()
    assert elected.votes_B.tolist() == votes[votes > 0].tolist()
    assert elected.step_B.tolist() == (10 * elected.candidate_B).tolist()
    # Of two places the greedy choice is the best of all pairs with its first.
    pairs = [pair for pair in combinations_with_replacement(range(5), 2) if chosen[0] in pair]
    assert nll(chosen[:2]) == pytest.approx(min(map(nll, pairs)))


@pytest.mark.parametrize(("task", "outputs_ENO", "labels_N"), tasks(), ids=["classes", "numbers"])
def test_once_each_has_one_place_and_who_diverged_none_before_others(
    task: Task, outputs_ENO: torch.Tensor, labels_N: torch.Tensor
) -> None:
    outputs_ENO = outputs_ENO.clone()
    outputs_ENO[2, 0] = torch.nan
    all_stand = standing(task, outputs_ENO, labels_N)
    assert all_stand.elected(task, labels_N, 4, True, []).candidate_B.tolist() == [0, 1, 3, 4]
    sure = all_stand.elected(task, labels_N, 1, True, [3])
    assert (sure.candidate_B.tolist(), sure.votes_B.tolist()) == ([3], [1])


def test_it_is_over_when_the_bag_gets_no_better() -> None:
    protocol = Varied(looks=10, trial=2, patience=2, gain=0.01)
    better = [1.0, 0.9, 0.8, 0.7, 0.6]
    assert not protocol.is_over(better)
    assert protocol.is_over([*better, 0.6, 0.595])
    assert not protocol.is_over([1.0, 1.0, 1.0])  # the trial and two looks come first
    assert protocol.is_over([1.0, 1.0, 1.0, 1.0])
    assert not Varied(patience=None).is_over([1.0] * 100)
    assert protocol.phases == ((0, 2), (2, 8))
    assert [models for models, _, _ in protocol.parts(8)] == [16, 4]


def test_once_a_candidate_has_one_place_at_whatever_look() -> None:
    task, outputs_ENO, labels_N = tasks()[0]
    early = standing(task, outputs_ENO, labels_N)
    both = early.beside(standing(task, outputs_ENO + 0.01, labels_N))
    elected = both.elected(task, labels_N, 5, True, [])
    assert sorted(elected.candidate_B.tolist()) == [0, 1, 2, 3, 4]
