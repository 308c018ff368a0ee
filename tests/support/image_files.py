"""Images like no others, in Parquet files and folders of classes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

Row = tuple[bytes | None, int | None]


def encoded(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def pixels_of(index: int, size: int = 6, channels: int = 3) -> NDArray[np.uint8]:
    """An image like no other; its first pixel is its index."""
    shape = (size, size, channels) if channels == 3 else (size, size)
    pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0] = index
    return pixels


def some(count: int, first: int = 0) -> list[Row]:
    return [(encoded(pixels_of(index)), index % 3) for index in range(first, first + count)]


def write(
    path: Path, rows: Sequence[Row], names: Sequence[str] | None = None, label: Any = None
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": f"{i}.png"} for i, (content, _) in enumerate(rows)]
    table = pa.table(
        {
            "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "label": pa.array([label for _, label in rows], label or pa.int64()),
        }
    )
    if names is not None:
        told = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, path, row_group_size=7)
    return str(path)


def write_folder(root: Path, indices: Sequence[int], channels: int = 3) -> None:
    for index in indices:
        path = root / "abc"[index % 3] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels_of(index, channels=channels)))
