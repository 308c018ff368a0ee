"""What tells a user's code from other code: a change is seen, and nothing else is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bend_ray.errors import ConfigError
from bend_ray.process.code import (
    blamed,
    find_source,
    is_importable,
    module_digest,
    object_digest,
)

Define = Callable[..., Any]


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a package of two modules, and a module beside it."""
    package = tmp_path / "bazaar"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from bazaar.layers import size\n")
    (package / "layers.py").write_text("size = 3\n")
    (tmp_path / "stall.py").write_text("def make():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_the_files_of_a_package_decide_what_its_modules_are(folder: Path) -> None:
    root, files = find_source("bazaar.nets")
    assert root == folder
    assert {file.name for file in files} == {"__init__.py", "nets.py", "layers.py"}
    before = module_digest("bazaar.nets")
    assert module_digest("bazaar.nets") == before
    (folder / "stall.py").write_text("")
    assert module_digest("bazaar.nets") == before
    (folder / "bazaar" / "layers.py").write_text("size = 4\n")
    assert module_digest("bazaar.nets") != before


def test_a_module_alone_is_its_file(folder: Path) -> None:
    assert find_source("stall") == (folder, [folder / "stall.py"])
    before = module_digest("stall")
    (folder / "stall.py").write_text("def make():\n    return 2\n")
    assert module_digest("stall") != before


def test_the_source_is_not_run(folder: Path) -> None:
    (folder / "stall.py").write_text("raise SystemExit('was run')\n")
    module_digest("stall")
    (folder / "bazaar" / "__init__.py").write_text("raise SystemExit('was run')\n")
    module_digest("bazaar.nets")


@pytest.mark.parametrize("module", ["json.decoder", "os", "sys", "numpy.linalg"])
def test_what_every_machine_has_needs_no_files(module: str) -> None:
    assert find_source(module)[1] == []
    assert module_digest(module) == module_digest(module)


@pytest.mark.parametrize(
    ("module", "message"),
    [("nowhere", "start in the folder that holds it"), ("bazaar.none", "inside bazaar, got none")],
)
def test_a_module_that_is_not_there_is_refused(folder: Path, module: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_source(module)


def _defined(source: str, **around: Any) -> Define:
    """A function as a notebook defines one: of no module that could be imported."""
    scope: dict[str, Any] = {"__name__": "__main__", **around}
    exec(source, scope)
    return scope["make"]  # type: ignore[no-any-return]


def test_a_function_of_a_notebook_goes_by_its_code_and_what_it_reads() -> None:
    source = "def make(a=1):\n    return width + a\n"
    digests = [
        object_digest(_defined(source, width=3)),
        object_digest(_defined(source, width=4)),
        object_digest(_defined(source.replace("a=1", "a=2"), width=3)),
        object_digest(_defined(source.replace("+", "-"), width=3)),
        object_digest(_defined(source.replace("width", "length"), length=3)),
        object_digest(_defined(source, width=np.arange(3))),
        object_digest(_defined(source, width=np.arange(3) * 1.0)),
    ]
    assert len(set(digests)) == len(digests)
    assert object_digest(_defined(source, width=3)) == digests[0]
    # What it does not read changes nothing.
    assert object_digest(_defined(source, width=3, height=5)) == digests[0]


def test_an_attribute_is_no_global_of_its_name() -> None:
    source = "def make(x):\n    return x.size\n"
    assert object_digest(_defined(source, size=iter(()))) == object_digest(_defined(source))


def test_what_functions_inside_read_is_part_of_it() -> None:
    source = "def make():\n    return [lambda: width for _ in range(3)]\n"
    first, second = (object_digest(_defined(source, width=width)) for width in (3, 4))
    assert first != second
    assert first == object_digest(_defined(source, width=3))


def test_what_a_function_calls_is_part_of_it() -> None:
    inner = _defined("def make():\n    return 1\n")
    other = _defined("def make():\n    return 2\n")
    source = "def make():\n    return inner()\n"
    first = object_digest(_defined(source, inner=inner))
    assert first == object_digest(_defined(source, inner=inner))
    assert first != object_digest(_defined(source, inner=other))


def test_a_class_goes_by_its_methods_and_bases() -> None:
    source = "class make({base}):\n    size = {size}\n    def run(self):\n        return {value}\n"

    def digest(**given: Any) -> str:
        return object_digest(_defined(source.format(**{"base": "object", "size": 1} | given)))

    assert digest(value=1) == digest(value=1)
    assert len({digest(value=1), digest(value=2), digest(value=1, size=2)}) == 3
    assert digest(value=1, base="dict") != digest(value=1)


def test_functions_that_call_each_other_have_a_digest() -> None:
    source = "def other():\n    return make()\ndef make():\n    return other()\n"
    assert object_digest(_defined(source)) == object_digest(_defined(source))


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads a generator, whose content cannot be told"):
        object_digest(_defined("def make():\n    return next(it)\n", it=(i for i in range(3))))


def test_only_what_another_process_would_find_is_importable() -> None:
    assert is_importable(object_digest)
    assert is_importable(Path)
    assert not is_importable(_defined("def make(): ..."))
    assert not is_importable(lambda: None)


def test_an_error_of_a_users_code_is_told_with_its_place(folder: Path) -> None:
    (folder / "stall.py").write_text("import json\n\ndef make():\n    json.loads('{')\n")
    find_source("stall")
    try:
        importlib.import_module("stall").make()
    except ValueError as error:
        told = blamed(error)
    assert told.startswith("JSONDecodeError: Expecting property name")
    assert told.endswith("(stall.py, line 4)")
    assert len(told.splitlines()) == 1
