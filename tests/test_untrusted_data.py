"""Nothing in the package reads a format that can run code: pickle and what is made of it.

Whoever may write to a store, or sends an image, a config or a bag, must not get further than that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bend_ray

PACKAGE = Path(bend_ray.__file__).parent
BANNED_MODULES = {
    *("pickle", "_pickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "marshal"),
    *("shelve", "jsonpickle", "torch.package"),
}
HARMLESS = {"pickle.UnpicklingError"}
BANNED_CALLS = {
    *("eval", "exec", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("torch.jit.load", "pandas.read_pickle", "torch.hub.load", "os.system"),
}
NEEDS = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
KNOWN = {
    # A reference to an object that this cluster holds: from process to process, never stored.
    ("runtime/on_ray.py", "ray.cloudpickle"),
    ("runtime/on_ray.py", "ray.cloudpickle.loads"),
    ("runtime/on_ray.py", "ray.cloudpickle.dumps"),
    # Code of the user's own, which this process has imported, on its way to workers.
    ("runtime/cluster.py", "ray.cloudpickle"),
    ("runtime/cluster.py", "ray.cloudpickle.register_pickle_by_value"),
}


def offences(source: str) -> Iterator[str]:
    """What a module's source does that may run what it reads."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                names[each.asname or each.name.partition(".")[0]] = (
                    each.name if each.asname else each.name.partition(".")[0]
                )
                if _banned(each.name):
                    yield each.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                names[each.asname or each.name] = whole
                if _banned(node.module) or _banned(whole):
                    yield whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            needed = NEEDS.get(called)
            given = {
                each.arg: each.value.value
                for each in node.keywords
                if isinstance(each.value, ast.Constant)
            }
            if called in BANNED_CALLS or _banned(called.rpartition(".")[0]):
                yield called
            # Absent is not enough: what is absent has had another default before.
            elif needed is not None and given.get(needed[0]) is not needed[1]:
                yield f"{called} without {needed[0]}={needed[1]}"


def _banned(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in BANNED_MODULES)


def _dotted(function: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ""
    # Lazily imported modules have the names of eager ones.
    return ".".join([names.get(function.id, function.id), *reversed(parts)]).replace(
        "bend_ray.process.lazy.", ""
    )


@pytest.mark.slow
def test_no_module_unpickles() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), offence)
        for path in PACKAGE.rglob("*.py")
        for offence in offences(path.read_text(encoding="utf-8"))
        if offence not in HARMLESS
    }
    assert found == KNOWN


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as read",
        "def f():\n    import dill as d",
        "from ray import cloudpickle",
        "import ray.cloudpickle as c",
        "import torch as t\nt.load(p)",
        "from bend_ray.process.lazy import torch\ntorch.load(p, weights_only=False)",
        "from torch import load\nload(p, map_location='cpu')",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import joblib",
        "eval(text)",
    ],
)
def test_it_would_be_noticed(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "model.eval()",
    ],
)
def test_what_is_safe_is_let_be(source: str) -> None:
    assert not list(offences(source))
