"""An answer from the store is for this data: names of artifacts come from what is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from image_files import some, write, write_folder

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGES, Graph, graph_of, identified, newest_config
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import DataError


@pytest.fixture(name="home")
def make_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/train.parquet", some(12))
    write(tmp_path / "data/test.parquet", some(6, 50))
    return tmp_path


def config_of(folder: str = "data", *more: str) -> PipelineConfig:
    train, test = (f"dataset.{part}={folder}/{part}.parquet" for part in ("train", "test"))
    return load_config(None, ["dataset.kind=image_parquet", train, test, *more])


def planned(config: PipelineConfig, home: Path) -> Graph:
    return graph_of(identified(config), Store(str(home / "store")))


def changed(home: Path, before: Graph, after: Graph) -> list[str]:
    return [s for s in STAGES if before[s].fingerprint != after[s].fingerprint]


def test_the_same_words_for_other_data_are_another_question(home: Path) -> None:
    before = planned(config_of(), home)
    assert changed(home, before, planned(config_of(), home)) == []
    write(home / "data/train.parquet", [*some(11), (some(12)[11][0], 0)])
    assert changed(home, before, planned(config_of(), home)) == list(STAGES)


def test_another_test_part_asks_for_another_evaluation_alone(home: Path) -> None:
    before = planned(config_of(), home)
    write(home / "data/test.parquet", some(6, 60))
    assert changed(home, before, planned(config_of(), home)) == ["evaluation"]


def test_other_words_for_the_same_data_are_the_same_question(home: Path) -> None:
    before = planned(config_of(), home)
    shutil.copytree(home / "data", home / "elsewhere/moved")
    for folder in (f"{home}/data", f"file://{home}/data", "./data/../data", "elsewhere/moved"):
        assert changed(home, before, planned(config_of(folder), home)) == []


def test_what_is_told_of_duplicates_changes_no_name_and_what_is_read_does(home: Path) -> None:
    before = planned(config_of(), home)
    told = planned(config_of("data", "dataset.duplicates=refuse"), home)
    assert changed(home, before, told) == []
    for knob in ("background=black", "image_size=5", "mode=grey", "label_column=class"):
        other = planned(config_of("data", f"dataset.{knob}"), home)
        assert changed(home, before, other) == list(STAGES)


def test_a_folders_names_are_its_classes_and_belong_to_it(home: Path) -> None:
    for part in ("train", "test"):
        write_folder(home / "root" / part, range(6))
    config = load_config(None, ["dataset.kind=image_folder", "dataset.root=root"])
    before = planned(config, home)
    (home / "root/train/a").rename(home / "root/train/z")
    (home / "root/test/a").rename(home / "root/test/z")
    assert changed(home, before, planned(config, home)) == list(STAGES)


def test_a_config_can_ask_for_these_files_and_no_others(home: Path) -> None:
    content = identified(config_of()).dataset.content  # type: ignore[union-attr]
    asked = f"dataset.content={json.dumps(content.model_dump())}"
    pinned = config_of("data", "dataset.num_validation=2", asked)
    assert identified(pinned) == pinned
    pinned.dataset.load()
    write(home / "data/train.parquet", some(13))
    with pytest.raises(DataError, match=r"content\.train: expected files of digest .*, got "):
        pinned.dataset.load()


def commit(artifacts: Iterable[Artifact]) -> None:
    for artifact in artifacts:
        artifact.commit(files=[], metrics={"models": 0}, cost=Cost())


def test_the_newest_evaluation_is_found_without_its_data(home: Path) -> None:
    store = Store(str(home / "store"))
    config = identified(config_of())
    commit(graph_of(config, store))
    shutil.rmtree(home / "data")
    assert newest_config(store) == config


def test_the_newest_evaluation_knows_its_own_test_part(home: Path) -> None:
    store = Store(str(home / "store"))
    *others, _ = graph_of(identified(config_of()), store)
    commit(others)
    write(home / "data/test.parquet", some(6, 60))
    config = identified(config_of())
    commit([graph_of(config, store).evaluation])
    assert newest_config(store) == config
