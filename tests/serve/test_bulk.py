"""``bend ask`` and ``bend predict``: a few pictures here, many examples on a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from strangers import write_strangers
from test_app import picture

from bend_ray.cli.bag import ask
from bend_ray.errors import ConfigError, DataError
from bend_ray.export.card import noise
from bend_ray.serve.bag import Bag
from bend_ray.serve.pictures import lines

EACH = 70
"""More than a batch."""


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 17, (EACH, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(digits):
        (root / f"{index:03d}.png").write_bytes(picture(pixels, scale=1 + index % 3))
    return root


def test_ask_says_a_line_about_each_picture(
    folder: Path, bag: Bag, pictures: Path, digits: np.ndarray
) -> None:
    files = sorted(pictures.iterdir())[:3]
    done = CliRunner().invoke(ask, ["--export", str(folder), *map(str, files)])
    assert done.exit_code == 0
    expected = bag.predict(digits[:3])
    assert [line.split()[1] for line in done.output.splitlines()] == list(map(str, expected))
    (pictures.parent / "junk.png").write_bytes(b"junk")
    for name in ("junk.png", "none.png"):
        with pytest.raises(DataError, match=rf"^[^\n]*{name}: [^\n]+$"):
            list(lines(folder, [pictures.parent / name]))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_bulk_says_what_the_bag_says(
    folder: Path, bag: Bag, pictures: Path, digits: np.ndarray, tmp_path: Path
) -> None:
    from bend_ray.serve.bulk import predict

    rows = [{"bytes": picture(pixels), "path": None} for pixels in digits]
    table = pa.table({"image": rows, "label": list(range(EACH))})
    pq.write_table(table, tmp_path / "images.parquet")
    write_strangers(tmp_path / "two", "two")
    two = Bag.load(tmp_path / "two")
    inputs = noise(two.card, EACH)
    columns = {name: pa.array(values.tolist()) for name, values in inputs.items()}
    pq.write_table(pa.table({**columns, "id": list(range(EACH))}), tmp_path / "two.parquet")
    for source, export, key, expected in (
        (pictures, folder, "image", bag.predict_proba(digits)),
        (tmp_path / "images.parquet", folder, "label", bag.predict_proba(digits)),
        (tmp_path / "two.parquet", tmp_path / "two", "id", two.predict_proba(inputs)),
    ):
        output = tmp_path / f"out-{source.name}"
        assert predict(str(source), str(output), str(export), "image", None, False) == EACH
        said = sorted(pq.read_table(output).to_pylist(), key=lambda row: str(row[key]).zfill(9))
        np.testing.assert_allclose([row["probabilities"] for row in said], expected, atol=1e-6)
        if key == "image":
            assert os.path.basename(said[-1]["image"]) == f"{EACH - 1:03d}.png"
    with pytest.raises(ConfigError, match="new or empty"):
        predict(str(pictures), str(tmp_path / "two"), str(folder), "image", None, False)
    with pytest.raises(DataError, match="expected a column photo"):
        predict(
            str(tmp_path / "images.parquet"), str(tmp_path / "a"), str(folder), "photo", None, False
        )
