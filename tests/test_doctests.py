"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import bend_ray

MODULES = [
    module.name
    for module in pkgutil.walk_packages(bend_ray.__path__, "bend_ray.")
    if not module.name.startswith("bend_ray.stages") and module.name != "bend_ray.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    here = {"store": str(tmp_path / "store")}
    assert doctest.testmod(importlib.import_module(name), extraglobs=here).failed == 0
