import json
from pathlib import Path

import pytest
from evaluations import CONFIG, commit

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import graph_of
from bend_ray.errors import StoreError
from bend_ray.report.evaluation import Result
from bend_ray.report.page import write_report
from bend_ray.report.runs import Run, output_directory
from bend_ray.report.side_by_side import compared, labels, read_entries, text, write_comparison


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store with one run of another config."""
    samples = CONFIG.samples.model_copy(update={"temperature": 0.5})
    store = Store(str(tmp_path / "other"))
    commit(CONFIG.model_copy(update={"samples": samples}), store)
    return store


@pytest.mark.slow
def test_stores_reports_and_results_are_all_taken(
    store: Store, other: Store, repeats: list[Run], tmp_path: Path
) -> None:
    where = tmp_path / "report"
    page = write_report(repeats[:2], output_directory(str(where)))
    told = Result.of(graph_of(CONFIG, store)).as_json()
    (tmp_path / "one.json").write_text(json.dumps(told))
    (tmp_path / "two.json").write_text(json.dumps({"repeats": [told, told], "aggregate": {}}))
    sources = [
        *(store.uri, other.uri, str(where), page),
        *(str(tmp_path / "one.json"), str(tmp_path / "two.json")),
    ]
    entries = read_entries(sources)
    assert [len(entry.results) for entry in entries] == [3, 1, 2, 2, 1, 2]
    assert [entry.config is None for entry in entries] == [False] * 4 + [True] * 2
    assert entries[0].results == [run.result for run in repeats]


@pytest.mark.slow
def test_runs_are_named_by_what_tells_them_apart(store: Store, other: Store) -> None:
    names = labels(read_entries([store.uri, other.uri]))
    assert names == ["digits, defaults", "samples.temperature=0.5"]
    twice = labels(read_entries([store.uri, store.uri]))
    assert all(store.uri in name for name in twice)


@pytest.mark.slow
def test_one_table_one_figure(store: Store, other: Store, tmp_path: Path) -> None:
    entries = read_entries([store.uri, other.uri])
    page = compared(entries)
    (header, first), (_, second) = (zip(*row.items(), strict=True) for row in page.tables[0].rows)
    assert header[:2] == ("run", "repeats")
    bags, beside = text(page).split("\n\n")
    assert "minus deep ensemble: NLL" in beside.splitlines()[0]
    assert "minus" not in bags
    assert first[1] == "3"
    assert "±" in first[3]
    assert "±" not in second[3]
    assert not {"=", "▲", "▼"} & set("".join(second[1:]))
    where = write_comparison(entries, page, output_directory(str(tmp_path / "out")))
    assert where == str(tmp_path / "out" / "compare.html")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.html",
        "compare.json",
        "compare.png",
    }
    assert (tmp_path / "out" / "compare.html").read_text().count("<svg") == 1


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"bag": 3}'])
def test_what_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(StoreError, match=r"x\.json: expected report\.json or a result"):
        read_entries([str(tmp_path / "x.json")])


def test_a_folder_of_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a store, a report or a result"):
        read_entries([str(tmp_path)])
