import pytest
from figures import whole_result
from scipy.stats import ttest_rel
from test_results import poor_result

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.report.evaluation import Result
from bend_ray.report.results import table
from bend_ray.report.statistics import BagDifference, aggregate, differences


def results() -> list[Result]:
    told = []
    for accuracy, rival in ((0.95, 0.94), (0.97, 0.95), (0.96, 0.96)):
        said = whole_result()
        said["bag"] = {**said["bag"], "accuracy": accuracy, "nll": 1 - accuracy}
        gaussian = said["rivals"]["gaussian"]
        said["rivals"]["gaussian"] = {**gaussian, "accuracy": rival, "nll": 1 - rival}
        told.append(Result.from_json(said))
    return told


def test_repeats_have_their_own_seed_and_split_and_share_no_artifact(tmp_path) -> None:
    configs = PipelineConfig(seed=5).repeats(3)
    assert configs[0] == PipelineConfig(seed=5)
    assert [config.seed for config in configs] == [5, 6, 7]
    assert [config.dataset.split_seed for config in configs] == [0, 1, 2]
    names = [
        artifact.fingerprint for c in configs for artifact in graph_of(c, Store(str(tmp_path)))
    ]
    assert len(set(names)) == len(names)


def test_an_aggregate_has_the_shape_of_a_result_with_mean_and_sd() -> None:
    said = aggregate(results())
    assert said["repeats"] == 3
    assert said["bag"]["accuracy"]["mean"] == pytest.approx(0.96)
    assert said["bag"]["accuracy"]["sd"] == pytest.approx(0.01)
    assert set(said["rivals"]["gaussian"]) == {
        *whole_result()["rivals"]["gaussian"],
        "bag_minus_it",
    }
    assert "members" not in said["bag"]
    assert "fingerprints" not in said


def test_differences_are_those_of_a_paired_t_test() -> None:
    pairs = [each.bag for each in results()], [each.rivals["gaussian"] for each in results()]
    found = differences(*pairs)["accuracy"]
    t = ttest_rel([0.95, 0.97, 0.96], [0.94, 0.95, 0.96]).statistic
    assert found.mean / found.standard_error == pytest.approx(t)
    assert aggregate(results())["rivals"]["gaussian"]["bag_minus_it"]["accuracy"] == {
        "mean": pytest.approx(0.01),
        "standard_error": found.standard_error,
        "verdict": "tie",
    }


@pytest.mark.parametrize(
    ("mean", "error", "score", "pairs", "verdict"),
    [
        (0.03, 0.01, "accuracy", 3, "win"),
        (-0.03, 0.01, "accuracy", 3, "loss"),
        (-0.03, 0.01, "nll", 3, "win"),
        (0.03, 0.01, "nll", 3, "loss"),
        (0.02, 0.01, "accuracy", 3, "tie"),
        (0.5, None, "accuracy", 1, "tie"),
        (0.5, 0.01, "accuracy", 2, "tie"),
    ],
)
def test_within_two_standard_errors_or_of_two_repeats_it_is_a_tie(
    mean: float, error: float | None, score: str, pairs: int, verdict: str
) -> None:
    assert BagDifference(score, mean, error, pairs).verdict == verdict


def test_what_some_repeats_do_not_know_is_told_of_the_others() -> None:
    poor = {**poor_result(), "rivals": whole_result()["rivals"]}
    said = aggregate([Result.from_json(each) for each in (whole_result(), poor)])
    assert said["populations"]["held_out"]["accuracy"]["mean"]["mean"] == 0.91
    assert said["populations"]["generated"]["novelty"]["spread"] == {"mean": 0.81, "sd": None}


def test_the_table_of_repeats_ranks_rivals_and_says_who_won() -> None:
    bags, members, *_ = table(*results()).split("\n\n")
    *lines, note = bags.splitlines()
    assert "within 2 standard errors, or of only two repeats" in note
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "bag of generated",
        "Gaussian",
        "deep ensemble",
        "deep ensemble, equal cost",
    ]
    assert "96.00 ± 1.00" in lines[1]
    assert "+1.00 ± 0.58 tie" in lines[2]
    assert members.splitlines()[1].startswith("generated")
