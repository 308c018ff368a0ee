"""Many examples at once, by Ray Data: ``bend predict``."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import ray
import ray.data

from bend_ray.data.arrays import LABELS
from bend_ray.data.csv_text import as_texts, typed
from bend_ray.data.decoding import UnreadableError, pixels_of
from bend_ray.data.files import File, find_files, reading
from bend_ray.data.images import PARQUET, PICTURES
from bend_ray.errors import DataError
from bend_ray.export.card import IMAGES, Card, read_card
from bend_ray.export.files import fetched, refuse_strangers
from bend_ray.runtime import cluster
from bend_ray.runtime.causes import our_errors
from bend_ray.serve.bag import Bag
from bend_ray.serve.pictures import look_of
from bend_ray.serve.queries import Inputs, given_inputs
from bend_ray.serve.settings import ServeSettings, Stop
from bend_ray.storage.filesystems import open_file, resolve
from bend_ray.storage.masking import cause, masked

BATCH, CSV = 64, ".csv"
LINES = pyarrow.csv.ParseOptions(newlines_in_values=True)


def predict(
    examples: str, output: str, export: str, column: str, address: str | None, run_code: bool
) -> int:
    """Ask a bag about image files or rows of Parquet or CSV files, and say how many there were.

    All are paths or URIs that every machine can read; the output is of Parquet, a row an example.
    DataError where examples are missing, cannot be read, or are not what the bag takes, ConfigError
    where the output is not empty.
    """
    refuse_strangers(output, frozenset())
    filesystem, path = resolve(output)
    with fetched(export) as folder:
        card = read_card(folder)
    takes_images = card.decoding is not None
    files = find_files(examples, None, (*PICTURES, *PARQUET, CSV), "examples")
    paths = [file.path for file in files]
    # What is no table is tried as an image.
    endings = {next((e for e in (*PARQUET, CSV) if p.lower().endswith(e)), IMAGES) for p in paths}
    kinds = sorted({"Parquet" if ending in PARQUET else ending for ending in endings})
    expected = ["Parquet", IMAGES if takes_images else CSV]
    if len(kinds) > 1 or kinds[0] not in expected:
        raise DataError(
            f"{masked(examples)}: expected {' or '.join(expected)} files, as the bag takes "
            f"{'images' if takes_images else 'no images'}, got {' and '.join(kinds)} files"
        )
    if kinds != [IMAGES]:
        # What is wrong with a file is told before Ray starts.
        with ThreadPoolExecutor(16) as pool:
            looks = [*pool.map(partial(_look, card, files.filesystem), files)]
        if not any(has_rows for _, has_rows in looks):
            raise DataError(f"{masked(examples)}: expected rows, got none, a header alone")
        try:
            pa.unify_schemas([schema for schema, _ in looks], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{masked(examples)}: expected files with the same columns, got: {cause(error)}"
            ) from None
    cluster.connect(address)
    read = {
        "Parquet": ray.data.read_parquet,
        CSV: partial(ray.data.read_csv, parse_options=LINES, convert_options=as_texts()),
        IMAGES: partial(ray.data.read_binary_files, include_paths=True),
    }[kinds[0]]
    processes = max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
    work = read(paths, filesystem=files.filesystem).map_batches(
        _Predictor,
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes),
        fn_constructor_args=(export, None if kinds == [IMAGES] else column, run_code),
        num_cpus=1,
    )
    with our_errors(), reading(masked(examples)):
        work.write_parquet(path, filesystem=filesystem)
    return int(pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet").count_rows())


def _look(card: Card, filesystem: pyarrow.fs.FileSystem, file: File) -> tuple[pa.Schema, bool]:
    """The columns of a table's file, and whether it has rows; DataError where it is none."""
    with reading(masked(file.path)), open_file(filesystem, file.path) as source:
        if file.path.lower().endswith(CSV):
            reader = pyarrow.csv.open_csv(source, None, LINES, as_texts())
            schema, has_rows = reader.schema, any(batch.num_rows for batch in reader)
        else:
            metadata = pyarrow.parquet.read_metadata(source)
            schema, has_rows = metadata.schema.to_arrow_schema(), metadata.num_rows > 0
    try:
        if card.columns:
            given_inputs(schema.empty_table(), card)
    except DataError as error:
        raise DataError(f"{masked(file.path)}: {str(error).removeprefix('x: ')}") from None
    return schema, has_rows


class _Predictor:
    """One process with a bag; ``column`` is that of images in a table, None for image files."""

    def __init__(self, export: str, column: str | None, run_code: bool) -> None:
        settings = ServeSettings(groups=1, max_batch_size=BATCH, run_code=run_code)
        self.bag = Bag.load(export, settings)
        self.column = column

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with answers instead of inputs."""
        card = self.bag.card
        if card.decoding is not None:
            inputs, rest = self._images(table)
        else:
            known = [name for name in card.inputs if name in table.column_names]
            labels = [name for name in table.column_names if name in LABELS]
            used = table.select(known) if known else table.drop_columns(labels)
            rest = table.drop_columns(used.column_names)
            # In CSV numbers are texts too.
            inputs = given_inputs(used if card.columns else typed(used, ()), card)
        said = self.bag.answer(inputs, [Stop()] * len(table))
        answers = card.task.columns(said, card.class_names) | {
            "predictive_entropy": said["entropy"],
            "mutual_information": said["mutual_information"],
            "model_version": [card.model_version] * len(table),
        }
        for name, values in answers.items():
            rest = rest.append_column(name, pa.array(values))
        if twice := [name for name, count in Counter(rest.column_names).items() if count > 1]:
            raise DataError(
                f"expected columns of different names, also than answers, got {twice[0]}; rename it"
            )
        return rest

    def _images(self, table: pa.Table) -> tuple[Inputs, pa.Table]:
        look, pixels, wheres = look_of(self.bag.card), [], []
        if self.column is not None and self.column not in table.column_names:
            told = ", ".join(table.column_names)
            raise DataError(f"expected a column {self.column} of images, got {told}; use --column")
        held = table.select([self.column] if self.column else ["bytes", "path"])
        for row in held.to_pylist():
            image: Any = row[self.column] if self.column else row
            content, where = image.get("bytes"), image.get("path")
            wheres.append(where)
            try:
                pixels.append(pixels_of(content, look))
            except (UnreadableError, TypeError) as error:
                raise DataError(f"cannot use {where}: {error}; replace or remove it") from None
        rest = table.drop_columns(held.column_names)
        return {IMAGES: np.stack(pixels)}, rest.append_column(
            "image", pa.array(wheres, pa.string())
        )
