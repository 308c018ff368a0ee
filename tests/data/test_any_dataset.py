"""Whatever a data set's files hold, it is loaded, or refused in one line that names the file."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, pixels_of, some, write
from PIL import Image

from bend_ray.data.datasets import ImageFolder, ImageParquet
from bend_ray.data.examples import Parts
from bend_ray.errors import DataError

PNG = encoded(pixels_of(1))
JPEG = encoded(pixels_of(1), "JPEG")


def loaded(spec: ImageParquet | ImageFolder) -> Parts | None:
    """The data set, its test part opened, or None; anything but one line of ours is raised."""
    try:
        dataset = spec.load()
        assert len(dataset.test)
    except DataError as error:
        told = str(error)
    else:
        return dataset
    assert len(told.splitlines()) == 1
    assert told.isprintable()
    return None


def spec_of(path: Path, **options: Any) -> ImageParquet:
    test = write(path.parent / "test.parquet", some(4, first=100))
    given = {"train": str(path), "test": test, "num_validation": 2}
    return ImageParquet(**given | options)


@pytest.mark.slow
@given(data=st.data())
@fuzzed(40)
def test_any_parquet_file(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "train.parquet"
    write(path, some(9), names=["x", "y", "z"])
    path.write_bytes(data.draw(damaged(path.read_bytes()) | st.binary(max_size=30)))
    loaded(spec_of(path))


@pytest.mark.slow
@given(data=st.data())
@fuzzed(40)
def test_any_image(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([PNG, JPEG]))
    rows = [(data.draw(damaged(whole) | st.binary(max_size=20)), 0), *some(5)]
    path = tmp_path / "train.parquet"
    write(path, rows)
    loaded(spec_of(path, image_size=data.draw(st.sampled_from([None, 6]))))


images = st.sampled_from(
    [
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        pa.struct({"bytes": pa.large_binary()}),
        pa.struct({"bytes": pa.string(), "path": pa.int32()}),
        pa.struct({"bytes": pa.list_(pa.list_(pa.uint8()))}),
        pa.struct({"bytes": pa.float64()}),
        pa.list_(pa.struct({"bytes": pa.binary()})),
        *(pa.binary(), pa.null(), pa.int64()),
    ]
)
labels = st.sampled_from(
    [
        *(pa.int64(), pa.uint64(), pa.int8(), pa.float64(), pa.string(), pa.bool_(), pa.null()),
        *(pa.list_(pa.int64()), pa.dictionary(pa.int8(), pa.int64()), pa.timestamp("ms")),
    ]
)


@given(
    image=images,
    label=labels,
    number=st.integers(-(2**63), 2**64) | st.integers(-1, 3),
    names=st.none() | st.lists(st.text(max_size=4), max_size=4) | st.text(max_size=3),
)
@fuzzed(40)
def test_any_columns(
    tmp_path: Path, image: pa.DataType, label: pa.DataType, number: int, names: Any
) -> None:
    def column(value: Any, arrow: pa.DataType) -> pa.Array:
        try:
            return pa.array([value, value], arrow)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return pa.nulls(2, arrow)

    picture = {"bytes": PNG, "path": "a\x1b[2J\nb"}
    value = [picture] if pa.types.is_list(image) else picture
    table = pa.table({"image": column(value, image), "label": column(number, label)})
    told = {"info": {"features": {"label": {"names": names}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path)
    loaded(spec_of(path))


def test_labels_without_end(tmp_path: Path) -> None:
    # Names of all classes up to them would not fit into memory.
    path = tmp_path / "train.parquet"
    rows = [(PNG, 0), (PNG, 2**40), (PNG, 1), (PNG, 2)]
    write(path, rows)
    dataset = spec_of(path, num_validation=1).load()
    assert dataset.class_names == ("0", "1", "2", str(2**40))
    write(path, [(PNG, 2**64 - 1), *rows], label=pa.uint64())
    with pytest.raises(DataError, match=r"train\.parquet"):
        spec_of(path, num_validation=1).load()


@pytest.mark.slow
def test_rows_without_end(tmp_path: Path) -> None:
    """Less than a megabyte that says it is a hundred million images."""
    count = 100_000_000
    path = tmp_path / "train.parquet"
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "label": pa.int64()})
    nothing = pa.nulls(count // 10, image)
    zeros = pa.repeat(pa.scalar(0), count // 10)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(pa.table([nothing, zeros], schema=schema))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"at most 67,108,864 images, .*train\.parquet"):
        spec_of(path).load()


def bomb(side: int) -> bytes:
    """A PNG of a few kB with as many pixels as it says."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 300 MB."""
    body = b"zTXtcomment\x00\x00" + zlib.compress(bytes(300 * 2**20), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return PNG[:33] + chunk + PNG[33:]


@pytest.mark.parametrize("content", [bomb(8193), bomb(20_000), text_bomb()])
def test_images_that_unpack_to_more_than_they_should(tmp_path: Path, content: bytes) -> None:
    assert len(content) < 2**20
    path = tmp_path / "train.parquet"
    write(path, [(content, 0), *some(5)])
    with pytest.raises(DataError, match=r"train\.parquet row 0"):
        spec_of(path, image_size=6).load()
    folder = tmp_path / "root"
    for part in ("train", "test"):
        (folder / part / "a").mkdir(parents=True, exist_ok=True)
        (folder / part / "a" / "0.png").write_bytes(content)
        (folder / part / "a" / "1.png").write_bytes(PNG)
        (folder / part / "b").mkdir()
        (folder / part / "b" / "2.png").write_bytes(PNG)
    with pytest.raises(DataError, match=r"0\.png"):
        ImageFolder(root=str(folder), image_size=6, num_validation=1).load()


@pytest.mark.parametrize("name", ["../../outside", "a\nb", "<script>alert(1)</script>", "é", ""])
def test_names_of_classes_are_names_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train.parquet"
    write(path, some(9), names=["x", name, "z"])
    dataset = loaded(spec_of(path))
    assert dataset is None or dataset.class_names == ("x", name, "z")
    assert {each.name for each in tmp_path.iterdir()} == {"train.parquet", "test.parquet"}
