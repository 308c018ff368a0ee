"""The page of one run and of repeats, as a browser and a screen reader meet it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answers import members
from evaluations import CONFIG, commit
from fuzzing import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from pages import Seen
from PIL import Image

from bend_ray.artifacts.store import Store
from bend_ray.config.schema import AS_DRAWN, EvaluationSection
from bend_ray.ensemble.bagging import All, GreedyForward, TopK
from bend_ray.generation.rivals import DeepEnsemble, OriginalsBag
from bend_ray.report import results
from bend_ray.report.evaluation import Diverged, Result
from bend_ray.report.page import report, write_report
from bend_ray.report.runs import Run, default_output, output_directory, read_run, written

pytestmark = pytest.mark.slow

FIGURES = {
    "accuracies",
    "accuracy_by_cost",
    "accuracy_by_size",
    "deep_ensemble_equivalent",
    "diversity",
    "nearest",
    "nll_by_cost",
    "nll_by_size",
    "plane",
    "rejection",
    "reliability_bag",
    "reliability_member",
    "time_spent",
}


@pytest.fixture(scope="session")
def folder(repeats: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three repeats."""
    folder = tmp_path_factory.mktemp("report")
    assert write_report(repeats, output_directory(str(folder))) == str(folder / "report.html")
    return folder


@pytest.fixture
def page(folder: Path) -> Seen:
    return Seen((folder / "report.html").read_text())


def test_every_figure_has_a_png_beside_the_page_and_an_alternative_text(
    folder: Path, page: Seen
) -> None:
    assert {path.stem for path in folder.glob("*.png")} == FIGURES
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == len(FIGURES)
    for attrs in drawings:
        assert attrs["role"] == "img"
        assert re.search(r"\d", attrs["aria-label"] or "")
        assert len(attrs["aria-label"] or "") > 30


def test_the_page_needs_nothing_but_itself(folder: Path, page: Seen) -> None:
    names = [(key, value) for _, attrs in page.tags for key, value in attrs.items()]
    links = {v for k, v in names if k in ("src", "href", "xlink:href", "srcset") and v}
    ids = [value for key, value in names if key == "id"]
    assert {link[0] for link in links} <= {"#"}
    assert {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids))
    html = (folder / "report.html").read_text()
    assert set(re.findall(r"url\((?!#)", html)) == set()
    assert "<script" not in html
    clips = set(re.findall(r"url\(#([^)]+)\)", html))
    assert clips <= set(ids)


def test_dark_pages_and_paper_have_colours_of_their_own(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "width=device-width" in html
    for variable in ("ink", "grid", "blue"):
        assert html.count(f"--{variable}:") == 3
        assert f"var(--{variable})" in html


def test_it_says_what_was_found_and_how_to_make_it_again(page: Seen, repeats: list[Run]) -> None:
    assert "mean of 3 repeats" in page.text
    assert "deep ensemble of 4 ordinary networks" in page.text
    assert "bend run --set evaluation.temperature_scaling=false" in page.text
    assert "--set 'evaluation.rivals=[" in page.text
    assert "--repeats 3" in page.text
    assert repeats[0].versions["python"] in page.text
    assert repeats[2].result.fingerprints["evaluation"] in page.text
    assert "latent_size" in page.text
    for name in ("bag of generated", "originals bag", "trunk bag", "Gaussian", "best original"):
        assert name in page.text


def test_the_data_beside_it_holds_every_result(folder: Path, repeats: list[Run]) -> None:
    told = json.loads((folder / "report.json").read_text())
    assert told["results"] == [run.result.as_json() for run in repeats]
    assert told["config"]["seed"] == 0


def test_a_single_run_says_that_it_has_no_spread(repeats: list[Run]) -> None:
    (table,) = report(repeats[:1]).tables
    assert "One run has no spread" in table.note
    assert table.ours is not None
    ours = table.rows[table.ours]
    assert ours["test part"] == "bag of generated"
    assert "±" not in ours["accuracy %"]


def test_models_that_diverged_are_told_below_the_table(repeats: list[Run]) -> None:
    run = repeats[1]
    counts = {"seeds": Diverged(dropped=2), "samples": Diverged()}
    lost = replace(run, result=run.result.model_copy(update={"diverged": counts}))
    (table,) = report([repeats[0], lost]).tables
    assert table.note.endswith(" Seed 1, seeds: 2 diverged and left out.")


def test_a_deep_ensemble_too_small_for_our_cost_is_told_below_the_table(repeats: list[Run]) -> None:
    def costing(run: Run, affordable: int) -> Run:
        said = run.result.as_json()
        scores = {**said["bag"], "affordable": affordable, "size": 4}
        said["prices"]["equal_cost_deep_ensemble"] = scores
        return replace(run, result=Result.from_json(said))

    names = [row["test part"] for row in report([costing(repeats[0], 4)]).tables[0].rows]
    assert "deep ensemble, equal cost" in names
    (table,) = report([costing(repeats[0], 4), costing(repeats[1], 9)]).tables
    assert "deep ensemble, equal cost" not in [row["test part"] for row in table.rows]
    assert "trained 4 to 9 ordinary models; the deep ensemble has 4." in table.note


def test_what_was_done_to_drawn_models_is_told_below_the_table(repeats: list[Run]) -> None:
    run = repeats[0]
    finish = AS_DRAWN.model_dump()
    bare = replace(run, evidence=run.evidence | {"finish": finish})
    assert "Generated models were" not in report([bare]).tables[0].note
    finish = {"guidance": 0.5, "annealing": {"fraction": 0.05}}
    (table,) = report([replace(run, evidence=run.evidence | {"finish": finish})]).tables
    assert "Generated models were moved on by 0.5 of their trunk's way" in table.note
    assert "then trained for 5 % of an ordinary training" in table.note


def test_bags_scored_at_temperatures_have_one_nll_and_one_equivalent(tmp_path: Path) -> None:
    scaled = CONFIG.evaluation.model_copy(update={"temperature_scaling": True})
    config = CONFIG.model_copy(update={"evaluation": scaled})
    store = Store(str(tmp_path))
    run = read_run(store, commit(config, store).evaluation.fingerprint)
    page = report([run])
    header = list(page.tables[0].rows[0])
    assert [each for each in header if "NLL" in each or "DEE" in each] == [
        "NLL, nats",
        "DEE scaled",
        "bag minus it: NLL",
    ]
    assert all(list(row) == header for row in page.tables[0].rows)
    assert "temperatures fitted on validation examples" in page.tables[0].note


def test_names_of_the_users_are_text_and_not_markup(repeats: list[Run], tmp_path: Path) -> None:
    run = repeats[0]
    dataset = {**run.config["dataset"], "name": "<script>alert(1)</script> & Co"}
    spoilt = Run(
        run.result, {**run.config, "dataset": dataset}, run.evidence, run.versions, run.created
    )
    page = report([spoilt])
    page = type(page)(page.title, page.subtitle, page.headline, made=page.made)
    page.write(output_directory(str(tmp_path)), "x", {})
    html = (tmp_path / "x.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; Co" in html


def test_a_poor_run_has_the_figures_it_can_have(tmp_path: Path) -> None:

    section = CONFIG.evaluation.model_copy(update={"rivals": (OriginalsBag(),)})
    config = CONFIG.model_copy(update={"evaluation": section})
    nobody = members(0, 2)
    store = Store(str(tmp_path))
    alone = {"held_out": nobody, "ordinary": None, "generated": members(1, 3)}
    made = commit(config, store, **alone)
    page = report([read_run(store, made.evaluation.fingerprint)])
    names = {panel.name for panels in page.chapters.values() for panel in panels}
    assert names == FIGURES - {"deep_ensemble_equivalent"}
    assert "No deep ensemble was trained" in page.headline


SIZES = st.sampled_from([1, 2, 5])


@given(
    generated=SIZES,
    originals=SIZES,
    held_out=st.sampled_from([0, 1, 3]),
    ordinary=st.none() | SIZES,
    rivals=st.sets(st.sampled_from(CONFIG.evaluation.rivals)),
    bagging=st.sampled_from([All(), All(size=1), GreedyForward(size=1), TopK(size=1)]),
    scaled=st.booleans(),
    repeats=st.integers(1, 2),
)
@example(1, 1, 0, None, set(), All(), False, 1)
@fuzzed(10)
def test_any_evaluation_has_a_table_and_a_report(
    tmp_path: Path,
    generated: int,
    originals: int,
    held_out: int,
    ordinary: int | None,
    rivals: set[Any],
    bagging: Any,
    scaled: bool,
    repeats: int,
) -> None:
    told = tuple(rival for rival in CONFIG.evaluation.rivals if rival in rivals)
    if ordinary is None:
        told = tuple(rival for rival in told if not isinstance(rival, DeepEnsemble))
    section = EvaluationSection(rivals=told, bagging=bagging, temperature_scaling=scaled)
    runs = []
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        store = Store(folder)
        for config in CONFIG.model_copy(update={"evaluation": section}).repeats(repeats):
            made = commit(
                config,
                store,
                generated=members(generated, 1),
                originals=members(originals, 2),
                held_out=members(held_out, 3),
                ordinary=None if ordinary is None else members(ordinary, 4),
            )
            runs.append(read_run(store, made.evaluation.fingerprint))
    page = report(runs)
    names = {panel.name for panels in page.chapters.values() for panel in panels}
    assert FIGURES - {"deep_ensemble_equivalent"} <= names
    assert len(page.tables[0].rows) == 1 + len(told)
    assert results.table(runs[0].result).count("\nbag of generated ") == 1
    assert results.table(*(run.result for run in runs)).count("\nbag of generated ") == 1


def test_it_lies_in_the_store_under_a_name_of_its_own(store: Store) -> None:
    one = default_output(store, ["0123456789ab"])
    three = default_output(store, ["0123456789ab", "b", "c"])
    assert one.path == f"{store.path}/report/0123456789ab"
    assert three.path != one.path
    assert written(one) is None
    one.write_json("report.json", {})
    assert written(one) is None
    one.write_json("report.html", {})
    assert written(one) == f"{one.uri}/report.html"


def test_neither_ray_nor_torch_is_imported(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys; from bend_ray.cli.main import cli;"
        f"cli(['report', '--store', {store.uri!r}, '--output', {str(tmp_path)!r}],"
        " standalone_mode=False);"
        "print([name for name in ('ray', 'torch', 'sklearn', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "report.html"), "[]"]
