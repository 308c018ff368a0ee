"""Many images at once, by Ray Data: ``bend predict``.

Images are read by the code that reads data sets, as the bag's card says that its training did.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
import ray.data

from bend_ray.data import folders, parquet
from bend_ray.data.decoding import UnreadableError, pixels_of
from bend_ray.data.files import Files, find_files
from bend_ray.errors import BendError, ConfigError, DataError
from bend_ray.export.card import IMAGES
from bend_ray.export.files import fetch_bag
from bend_ray.runtime import cluster
from bend_ray.serve.bag import Bag
from bend_ray.serve.pictures import look_of
from bend_ray.serve.voting import Stop
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked

PIECE = 512
"""Images of a piece of work, at most."""
BATCH = 64


def predict(images: str, output: str, export: str, column: str, address: str | None) -> int:
    """Ask a bag about a folder of image files, or about Parquet files of images.

    Args:
        images: folder, file or pattern; a path or a URI.
        output: folder or URI for Parquet files, a row an image; new or empty.
        export: the exported bag, where all machines can read it.
        column: of the images in Parquet files.
        address: of the cluster to join; None for one of our own.

    Returns:
        How many images there were.

    Raises:
        DataError: images that are missing, or cannot be read.
        ConfigError: the output is not empty.
    """
    filesystem, path = resolve(output)
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
    if filesystem.get_file_info(selector):
        raise ConfigError(
            f"--output {masked(output)}: expected a new or empty folder; name another"
        )
    pieces = _pieces(images, column)
    cluster.connect(address)
    work = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _Predictor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(pieces)),
        fn_constructor_args=(export, images, column),
        num_cpus=1,
    )
    try:
        work.write_parquet(path, filesystem=filesystem)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, BendError) else error from None
    return sum(piece["stop"] - piece["first"] for piece in pieces)


def _files(images: str) -> Files:
    return find_files([images], None, (*folders.ENDINGS, *parquet.ENDINGS), "images")


def _pieces(images: str, column: str) -> list[dict[str, Any]]:
    """Rows of a file of Parquet each, or of the list of image files: ``file`` is -1."""
    files, pieces, counts = _files(images), [], {}
    for index, file in enumerate(files):
        if file.path.lower().endswith(parquet.ENDINGS):
            counts[index] = parquet.count_images(files.filesystem, file.path, column)
    if counts and len(counts) < len(files.files):
        raise DataError(f"{masked(images)}: expected image files or Parquet files, got both")
    for index, count in (counts or {-1: len(files.files)}).items():
        for first in range(0, count, PIECE):
            stop = min(first + PIECE, count)
            pieces.append({"file": index, "first": first, "stop": stop})
    if not pieces:
        raise DataError(f"{masked(images)}: expected images, got none")
    return pieces


class _Predictor:
    """One process with a bag."""

    def __init__(self, export: str, images: str, column: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            self.bag = Bag.load(fetch_bag(export, Path(scratch)), groups=1, batch=BATCH)
        self.files, self.column, self.look = _files(images), column, look_of(self.bag.card)

    def __call__(self, work: pa.Table) -> pa.Table:
        (piece,) = work.to_pylist()
        rows = np.arange(piece["first"], piece["stop"])
        if piece["file"] < 0:
            found = list(folders.read_files(self.files, rows))
        else:
            filesystem, path = self.files.filesystem, self.files.files[piece["file"]].path
            found = list(parquet.read_images(filesystem, [path], self.column, rows))
        batches = [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
        return pa.concat_tables([self._answers(batch) for batch in batches])

    def _answers(self, found: list[tuple[str, Any]]) -> pa.Table:
        pixels = []
        for where, encoded in found:
            try:
                pixels.append(pixels_of(encoded, self.look))
            except UnreadableError as error:
                raise DataError(f"cannot use {where}: {error}; replace or remove it") from None
        answers = self.bag.answer({IMAGES: np.stack(pixels)}, [Stop()] * len(pixels))
        card = self.bag.card
        return pa.table(
            {
                "image": [where for where, _ in found],
                "label": [card.class_names[label] for label in answers.labels_B.tolist()],
                "probability": answers.probs_BC.max(axis=1),
                "probabilities": pa.array(answers.probs_BC.tolist(), pa.list_(pa.float64())),
                "predictive_entropy": answers.entropy_B,
                "mutual_information": answers.information_B,
                "model_version": [card.model_version] * len(found),
            }
        )
