"""Files and code of a user's own on their way to the processes of a cluster."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.cloudpickle

from bend_ray.imported import code_of, imported_in
from bend_ray.spec import Spec


def gather(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into a folder, below which each is called as it is to be."""
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


@contextmanager
def importable(config: Spec | None) -> Iterator[dict[str, Any]]:
    """What ``ray.init`` takes so that workers can import the code that a config names."""
    files = code_of(config) if config is not None else {}
    if not files:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="bend-code-") as folder:
        gather(files, Path(folder))
        yield {"runtime_env": {"py_modules": [str(each) for each in Path(folder).iterdir()]}}


def send_with(config: Spec) -> None:
    """Where Ray runs already, and takes no files: code travels with the config, as functions do."""
    for each in imported_in(config):
        if each.files():
            each.hold()
            top = each.target.partition(":")[0].partition(".")[0]
            ray.cloudpickle.register_pickle_by_value(sys.modules[top])
